"""Objects as the published program records them in pickles, and the dict in which it keeps them."""

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from edm2.published.arrays import ArrayReader
from edm2.published.inert_pickle import Budget, Buildable, Maker, PickleReader, PickleRefused, shown

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
