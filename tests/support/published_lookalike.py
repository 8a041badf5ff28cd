"""Network pickles that look like those of the published program, written by this project from its own networks.

Only the structure is theirs (described in the golden set's README). Writing is done by `pickle`, torch and numpy, so
that these pickles are what these libraries really write; reading them is what is tested.
"""

import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edm2
from edm2.networks import Precond
from edm2.post_hoc_ema import SnapshotError

NAME = "network-snapshot-0000001-0.050.pkl"
BUFFERS = ("freqs", "phases")
PROGRAM = "raise RuntimeError('must not be executed')\n"


class EasyDict(dict):
    """Pickled as dnnlib.util.EasyDict."""


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    """Pickled as the function of this name."""
    raise RuntimeError("must not be called")


class Recorded:
    """An object of a class of the published program, with these attributes."""

    def __init__(self, class_name: str, state: Mapping[str, Any], **record: Any) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": PROGRAM, "class_name": class_name, "state": state}
        self.meta |= record

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self.meta,)

    @property
    def state(self) -> dict[str, Any]:
        """Its attributes."""
        return self.meta["state"]


class Calling:
    """A pickle of this calls `function(*arguments)` when it is loaded carelessly."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def dump(value: Any, protocol: int = 4) -> bytes:
    """The pickle, in which the classes above have the names of the published program's."""
    with _named_as_published():
        return pickle.dumps(value, protocol)


def write(folder: Path, value: Any, name: str = NAME) -> Path:
    """Write a pickle: of a value, or these bytes."""
    path = folder / name
    path.write_bytes(value if isinstance(value, bytes) else dump(value))
    return path


def refused(path: Path) -> str:
    """Message of a refusal: one line that names the file."""
    with pytest.raises(SnapshotError) as caught:
        edm2.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 500
    return message


@contextmanager
def _named_as_published() -> Iterator[None]:
    """`pickle` writes a name only if it finds the object under that name, so put ours there meanwhile."""
    homes = {"dnnlib.util": EasyDict, "torch_utils.persistence": _reconstruct_persistent_obj}
    before = {item: item.__module__ for item in homes.values()}
    for name, item in homes.items():
        item.__module__ = name
        sys.modules[name] = ModuleType(name)
        setattr(sys.modules[name], item.__name__, item)
        sys.modules[name.partition(".")[0]] = ModuleType(name.partition(".")[0])
    try:
        yield
    finally:
        for name, item in homes.items():
            item.__module__ = before[item]
            del sys.modules[name], sys.modules[name.partition(".")[0]]


# ------------------------------------------------------------------------------------------------ contents of a file


def contents(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], **entries: Any) -> EasyDict:
    """Contents of a file, to be dumped, perhaps after some mischief.

    Args:
        tensors: State dict of the network.
        arguments: What it was constructed with.
        entries: Top-level entries that differ: encoder, dataset_kwargs, loss_fn.
    """
    return EasyDict(
        encoder=entries.pop("encoder", rgb_encoder()),
        dataset_kwargs=entries.pop("dataset_kwargs", EasyDict(path="images.zip", use_labels=True)),
        loss_fn=entries.pop("loss_fn", loss(P_mean=-0.4, P_std=1.0)),
        ema=_network(tensors, arguments),
        **entries,
    )


def contents_of(net: Precond, dtype: torch.dtype = torch.float16, **entries: Any) -> EasyDict:
    """Contents of a file with a network of ours, stored in `dtype`."""
    arguments = {"use_fp16": True} | net.config.to_json()
    del arguments["config"]
    return contents({name: x.to(dtype) for name, x in net.state_dict().items()}, arguments, **entries)


def rgb_encoder() -> Recorded:
    return Recorded("StandardRGBEncoder", {"_init_args": (), "_init_kwargs": {}})


def vae_encoder(vae_name: str, scale: Any, bias: Any) -> Recorded:
    state = {"vae_name": vae_name, "scale": np.float32(scale), "bias": np.float32(bias), "batch_size": 8, "_vae": None}
    return Recorded("StabilityVAEEncoder", {"_init_args": (), "_init_kwargs": {}, **state})


def loss(**options: float) -> Recorded:
    state = {**options, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": options}
    return Recorded("EDM2Loss", state)


def _network(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Recorded:
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = tensor
    net = _module("Precond", tree)
    net.state.update(_init_args=(), _init_kwargs=dict(arguments))
    return net


def _module(name: str, tree: dict[str, Any]) -> "Recorded | nn.ModuleDict":
    """A module and all inside it; its class goes by its name, and by what is in it."""
    state = nn.Module().__dict__
    for key, value in tree.items():
        if isinstance(value, dict):
            state["_modules"][key] = _module(key, value)
        elif key in BUFFERS:
            state["_buffers"][key] = value
        else:
            state["_parameters"][key] = nn.Parameter(value, requires_grad=False)
    if name in ("enc", "dec"):
        blocks = nn.ModuleDict()
        blocks.__dict__.update(state)
        return blocks
    if not state["_modules"]:
        return Recorded("MPFourier" if state["_buffers"] else "MPConv", state)
    state["conv_skip"] = None
    return Recorded({"Precond": "Precond", "unet": "UNet"}.get(name, "Block"), state)


def layers(module: Any) -> list[Recorded]:
    """Recorded layers with a weight inside a module."""
    state = module.state if isinstance(module, Recorded) else module.__dict__
    inside = [layer for child in state["_modules"].values() for layer in layers(child)]
    return inside + ([module] if "weight" in state["_parameters"] else [])
