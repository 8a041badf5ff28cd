"""Objects as the published program records them in pickles, and the dict in which it keeps them."""

from typing import Any

from edm2.io.published.arrays import PickledTensor, locate_storage, locate_tensor
from edm2.io.published.inert_pickle import Call, PickleFile, PickleRefused, read_pickle, shown

MODULES = frozenset(("MPFourier", "MPConv", "Block", "UNet", "Precond", "ModuleDict"))
"""Classes of a network's modules."""

MAX_PREFIX = 200
"""Characters of a tensor's name."""


def recorded(value: Any) -> tuple[str, dict[str, Any]]:
    """Class and attributes of an object.

    Raises:
        PickleRefused: not an object, or one recorded in another way.
    """
    match value:
        case Call("torch.nn.modules.container.ModuleDict", (), dict(state)):
            return "ModuleDict", state
        case Call(
            "torch_utils.persistence._reconstruct_persistent_obj",
            ({"type": "class", "version": 6, "module_src": str(), "class_name": str(name), "state": dict(state)},),
        ):
            return name, state
    raise PickleRefused("is damaged, or newer than this program: no object, or one recorded in another way")


def read_contents(file: PickleFile) -> dict[str, Any]:
    """Read the dict in the file, all but the tensors' numbers."""
    start = file.file.read(4)
    if start.startswith(b"PK"):
        raise PickleRefused("is a training state, or something else of torch.save, and not a network snapshot")
    if not start.startswith(b"\x80"):
        raise PickleRefused("is of another format: neither safetensors nor a network pickle of the published program")
    file.file.seek(0)
    contents = read_pickle(file)
    for call in [*file.calls]:
        if call.name == "torch.storage._load_from_bytes":
            locate_storage(call, file)  # refuses a stream that torch has not written, even if no tensor uses it
    if not isinstance(contents, dict) or "ema" not in contents or "encoder" not in contents:
        raise PickleRefused("holds no network: published snapshots have entries named ema and encoder")
    return contents


def collect_tensors(net: Any, file: PickleFile) -> tuple[dict[str, PickledTensor], list[str]]:
    """Find parameters and buffers by name, in the order of a state dict, and the names of the buffers."""
    tensors: dict[str, PickledTensor] = {}
    buffers: list[str] = []
    pending: list[tuple[str, Any]] = [("", net)]
    seen: set[int] = set()
    while pending:
        prefix, module = pending.pop()
        name, state = recorded(module)
        if name not in MODULES or len(prefix) > MAX_PREFIX:
            raise PickleRefused(f"is damaged: {shown(prefix)} is of class {shown(name)}, or inside too many others")
        parameters, kept, children = (_entries(state, key, seen) for key in ("_parameters", "_buffers", "_modules"))
        buffers += [prefix + name for name in kept]
        tensors |= {prefix + name: locate_tensor(tensor, file) for name, tensor in (parameters | kept).items()}
        pending += [(f"{prefix}{name}.", child) for name, child in reversed(children.items())]
    if sum(tensor.layout.nbytes for tensor in tensors.values()) > file.size:
        raise PickleRefused("is damaged: its tensors would be larger than the file")
    return tensors, buffers


def _entries(state: dict[str, Any], key: str, seen: set[int]) -> dict[str, Any]:
    """Entries of one of a module's dicts, without None, which marks a layer that the network does without.

    A dict that is met again would make a network that contains itself, or one of a thousand times the file's size.
    """
    entries = state.get(key)
    if not isinstance(entries, dict) or id(entries) in seen:
        raise PickleRefused(f"is damaged: a module without {key} of its own")
    seen.add(id(entries))
    if not all(name.isprintable() and len(name) <= MAX_PREFIX for name in entries):
        raise PickleRefused(f"is damaged: a module whose {key} have impossible names")
    return {name: entry for name, entry in entries.items() if entry is not None}
