"""Objects as the published program records them in pickles, and the dict in which it keeps them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from edm2.io.published.arrays import ArrayReader, StoredTensor
from edm2.io.published.inert_pickle import Budget, Buildable, Maker, PickleReader, PickleRefused, shown

CLASSES = frozenset(
    ("MPFourier", "MPConv", "Block", "UNet", "Precond", "EDM2Loss", "StandardRGBEncoder", "StabilityVAEEncoder")
)
"""Classes whose objects a file may hold."""


@dataclass(eq=False)
class Recorded:
    """An object of a class of the published program."""

    class_name: str
    state: dict[str, Any]
    """Its attributes."""


class ModuleDict(Buildable):
    """torch.nn.ModuleDict: made empty, filled in later."""

    def __init__(self, *arguments: Any) -> None:
        self.state: dict[str, Any] = {}
        make_dict(*arguments)

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


def make_dict(*arguments: Any) -> dict[str, Any]:
    """An OrderedDict or EasyDict: empty, filled in later."""
    if arguments:
        raise PickleRefused("is damaged: a dict made of something")
    return {}


def read_contents(file: BinaryIO, budget: Budget) -> dict[str, Any]:
    """The dict in the file.

    Raises:
        PickleRefused: not a network pickle, or one with anything in it that does not belong there.
    """
    _check_kind(file.read(4))
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    makers: dict[str, Maker | None] = {
        "collections.OrderedDict": make_dict,
        "dnnlib.util.EasyDict": make_dict,
        "torch.nn.modules.container.ModuleDict": ModuleDict,
        "torch_utils.persistence._reconstruct_persistent_obj": make_recorded,
        **ArrayReader(file, budget).makers(),
    }
    contents = PickleReader(file, size, makers, budget=budget).read()
    if not isinstance(contents, dict) or "ema" not in contents or "encoder" not in contents:
        raise PickleRefused("holds no network: published snapshots have entries named ema and encoder")
    return contents


def _check_kind(start: bytes) -> None:
    """By its first bytes."""
    if start.startswith(b"PK"):
        raise PickleRefused("is a training state, or something else of torch.save, and not a network snapshot")
    if not start.startswith(b"\x80"):
        raise PickleRefused("is of another format: neither safetensors nor a network pickle of the published program")


MAX_NAME = 200
"""Characters in a name: a stranger's network could contain itself."""


def collect_tensors(net: Any, file_size: int, budget: Budget) -> tuple[dict[str, StoredTensor], list[str]]:
    """All parameters and buffers by name, in the order of a state dict, and the names of the buffers."""
    tensors: dict[str, StoredTensor] = {}
    buffers: list[str] = []
    for prefix, state in _walk(net, budget):
        parameters, kept = _present(state, "_parameters", budget), _present(state, "_buffers", budget)
        if isinstance(lost := state.get("_non_persistent_buffers_set"), set):
            kept = {name: tensor for name, tensor in kept.items() if name not in lost}
        buffers += [prefix + name for name in kept]
        for name, tensor in (*parameters.items(), *kept.items()):
            if prefix + name in tensors or not isinstance(tensor, StoredTensor):
                raise PickleRefused(f"is damaged: {shown(prefix + name)} is there twice, or is no tensor")
            tensors[prefix + name] = tensor
    if sum(tensor.nbytes for tensor in tensors.values()) > file_size:
        raise PickleRefused("is damaged: its tensors would be larger than the file")
    return tensors, buffers


def _walk(net: Any, budget: Budget) -> Iterator[tuple[str, dict[str, Any]]]:
    """Prefix and attributes of every module, each before the modules in it."""
    pending = [("", net)]
    while pending:
        prefix, module = pending.pop()
        if not isinstance(module, Recorded | ModuleDict) or len(prefix) > MAX_NAME:
            raise PickleRefused(f"is damaged: {shown(prefix)} is no module, or is inside too many others")
        yield prefix, module.state
        children = _present(module.state, "_modules", budget)
        pending += [(f"{prefix}{name}.", child) for name, child in reversed(children.items())]


def _present(state: dict[str, Any], key: str, budget: Budget) -> dict[str, Any]:
    """The entries of a module's dict that are there; None stands for a layer that the network does without."""
    entries = state.get(key)
    if not isinstance(entries, dict):
        raise PickleRefused(f"is damaged: a module without {key}")
    budget.spend(instructions=1 + len(entries))
    if not all(name.isprintable() and len(name) <= MAX_NAME for name in entries):
        raise PickleRefused(f"is damaged: a module whose {key} have impossible names")
    return {name: entry for name, entry in entries.items() if entry is not None}
