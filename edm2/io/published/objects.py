"""Objects as the published program records them in pickles, and the dict in which it keeps them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from edm2.io.published.arrays import NUMPY_MAKERS, PickledTensor, torch_makers
from edm2.io.published.inert_pickle import Buildable, PickleFile, PickleRefused, TextDict, read_pickle, shown

CLASSES = frozenset(
    ("MPFourier", "MPConv", "Block", "UNet", "Precond", "EDM2Loss", "StandardRGBEncoder", "StabilityVAEEncoder")
)
"""Classes whose objects a file may hold."""

MAX_PREFIX = 200
"""Characters of a tensor's name."""


@dataclass(eq=False)
class Recorded:
    """An object of a class of the published program."""

    class_name: str
    state: dict[str, Any]
    """Its attributes."""


class ModuleDict(Buildable):
    """torch.nn.ModuleDict: made empty, filled in later."""

    def __init__(self, *arguments: Any) -> None:
        self.state: dict[str, Any] = make_dict(*arguments)

    def build(self, state: Any) -> None:
        """The module's attributes."""
        if not isinstance(state, dict):
            raise PickleRefused("is damaged: a module whose attributes are no dict")
        self.state = state


def make_recorded(*arguments: Any) -> Recorded:
    """torch_utils.persistence._reconstruct_persistent_obj(...), without a look at the program's text."""
    match arguments:
        case ({"type": "class", "version": 6, "module_src": str(), "class_name": str(name), "state": dict(state)},):
            if name not in CLASSES:
                raise PickleRefused(f"holds an object of class {shown(name)}, which is none of EDM2's")
            return Recorded(name, state)
    raise PickleRefused("is damaged, or newer than this program: an object recorded in another way")


def make_dict(*arguments: Any) -> TextDict:
    """OrderedDict() or EasyDict(): empty, filled in later."""
    if arguments:
        raise PickleRefused("is damaged: a dict made of something")
    return TextDict()


def read_contents(file: BinaryIO) -> dict[str, Any]:
    """Read the dict in the file, all but the tensors' numbers.

    Raises:
        PickleRefused: not a network pickle, or one with anything in it that does not belong there.
    """
    start = file.read(4)
    if start.startswith(b"PK"):
        raise PickleRefused("is a training state, or something else of torch.save, and not a network snapshot")
    if not start.startswith(b"\x80"):
        raise PickleRefused("is of another format: neither safetensors nor a network pickle of the published program")
    file.seek(0)
    pickles = PickleFile(file)
    makers = {
        "collections.OrderedDict": make_dict,
        "dnnlib.util.EasyDict": make_dict,
        "torch.nn.modules.container.ModuleDict": ModuleDict,
        "torch_utils.persistence._reconstruct_persistent_obj": make_recorded,
    }
    contents = read_pickle(pickles, makers | torch_makers(pickles) | NUMPY_MAKERS)
    if not isinstance(contents, dict) or "ema" not in contents or "encoder" not in contents:
        raise PickleRefused("holds no network: published snapshots have entries named ema and encoder")
    return contents


def collect_tensors(net: Any, file_size: int) -> tuple[dict[str, PickledTensor], list[str]]:
    """Collect parameters and buffers by name, in the order of a state dict, and the names of the buffers."""
    tensors: dict[str, PickledTensor] = {}
    buffers: list[str] = []
    for prefix, parameters, kept in _modules(net):
        buffers += [prefix + name for name in kept]
        for name, tensor in (*parameters.items(), *kept.items()):
            if prefix + name in tensors or not isinstance(tensor, PickledTensor):
                raise PickleRefused(f"is damaged: {shown(prefix + name)} is there twice, or is no tensor")
            tensors[prefix + name] = tensor
    if sum(tensor.numel * tensor.dtype.itemsize for tensor in tensors.values()) > file_size:
        raise PickleRefused("is damaged: its tensors would be larger than the file")
    return tensors, buffers


def _modules(net: Any) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Prefix, parameters and persistent buffers of every module, each before the modules inside it."""
    pending: list[tuple[str, Any]] = [("", net)]
    seen: set[int] = set()
    while pending:
        prefix, module = pending.pop()
        if not isinstance(module, Recorded | ModuleDict) or len(prefix) > MAX_PREFIX:
            raise PickleRefused(f"is damaged: {shown(prefix)} is no module, or is inside too many others")
        parameters, buffers, children = (_entries(module.state, f"_{kind}", seen) for kind in KINDS)
        if isinstance(lost := module.state.get("_non_persistent_buffers_set"), set):
            buffers = {name: tensor for name, tensor in buffers.items() if name not in lost}
        yield prefix, parameters, buffers
        pending += [(f"{prefix}{name}.", child) for name, child in reversed(children.items())]


KINDS = ("parameters", "buffers", "modules")


def _entries(state: dict[str, Any], key: str, seen: set[int]) -> dict[str, Any]:
    """The entries of one of a module's dicts, without None, which marks a layer that the network does without.

    A dict that is met again would make a network that contains itself, or one of a thousand times the file's size.
    """
    entries = state.get(key)
    if not isinstance(entries, dict) or id(entries) in seen:
        raise PickleRefused(f"is damaged: a module without {key} of its own")
    seen.add(id(entries))
    if not all(name.isprintable() and len(name) <= MAX_PREFIX for name in entries):
        raise PickleRefused(f"is damaged: a module whose {key} have impossible names")
    return {name: entry for name, entry in entries.items() if entry is not None}
