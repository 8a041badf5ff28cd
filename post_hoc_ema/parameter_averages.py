"""Averages of a module's parameters, kept while training, whatever their profile."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from operator import index

import torch
from torch import Tensor, nn

from edm2.post_hoc_ema.dtypes import average_dtype


class ParameterAverages(ABC):
    """Averages θ̂ <- θ̂ + s (θ - θ̂) of one module, each with a length of its own that decides the share s.

    Averages live on the device of the parameters, in float32 at least (float64 for float64). Frozen parameters are
    averaged like any other, and those that torch shards (FSDP2) shard by shard.

    Args:
        module: Any; it is held, not copied.
        lengths: What tells the averages apart.
        offload: Keep the averages on the CPU. Not for sharded parameters, which FSDP2 offloads itself.

    Raises:
        ValueError: Nothing to average, or shards to offload.
    """

    def __init__(self, module: nn.Module, lengths: Sequence[float], offload: bool = False) -> None:
        self._module = module
        self._images_seen = 0
        parameters = self._parameters()
        if not parameters:
            raise ValueError(f"{type(module).__name__} has no floating-point parameters to average")
        if offload and any(hasattr(p, "to_local") for p in parameters.values()):
            raise ValueError("sharded parameters cannot be offloaded here; use CPUOffloadPolicy of fully_shard")
        self._offload = offload
        self._staging = _staging(parameters) if offload else {}
        self._averages = {length: _start(parameters, offload) for length in lengths}

    @abstractmethod
    def _share(self, length: float, t: int, dt: int) -> float:
        """Share s of the parameters as they are at `t`, in the average of this length last updated at t - dt."""

    @property
    def images_seen(self) -> int:
        """Images seen at the last update."""
        return self._images_seen

    @torch.no_grad()
    def update(self, images_seen: int) -> None:
        """Take in the parameters as they are now.

        The interval since the last update may be of any length and differ from update to update; the parameters are
        taken as constant since then.

        Raises:
            ValueError: `images_seen` does not exceed that of the last update.
        """
        t = index(images_seen)
        if t <= self._images_seen:
            raise ValueError(f"images_seen={t} must exceed {self._images_seen}, where the averages were last updated")
        parameters = self._arrived() if self._offload else self._parameters()
        shares = [self._share(length, t, t - self._images_seen) for length in self._averages]
        for names in _batches(next(iter(self._averages.values()))):
            new = [_local(parameters[name]) for name in names]
            for averages, share in zip(self._averages.values(), shares, strict=True):
                old = [_local(averages[name]) for name in names]
                new = [p.to(average) for p, average in zip(new, old, strict=True)]  # itself, if it is of this type
                torch._foreach_lerp_(old, new, share)
        self._images_seen = t

    @torch.no_grad()
    def _average(self, length: float) -> dict[str, Tensor]:
        """A state dict of the module, with averages for its parameters and copies of its buffers."""
        devices = {name: p.device for name, p in self._parameters().items()}
        averages = {name: average.to(devices[name], copy=True) for name, average in self._averages[length].items()}
        names = _names_of_parameters(self._module).items()
        averages = {name: averages[first] for name, first in names if first in averages}
        live = self._module.state_dict()
        return {name: averages[name] if name in averages else deepcopy(value) for name, value in live.items()}

    def state_dict(self) -> dict[str, Tensor | int]:
        """What resuming needs: `images_seen`, and `<length>/<parameter>` for each average.

        The tensors are the tracker's own, not copies, as in `torch.nn.Module.state_dict`.
        """
        state: dict[str, Tensor | int] = {"images_seen": self._images_seen}
        for length, averages in self._averages.items():
            state |= {f"{length!r}/{name}": average for name, average in averages.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Continue from a `state_dict()` as if never interrupted.

        Raises:
            ValueError: Lengths, parameter names, shapes or types differ from this tracker's; nothing is changed then.
        """
        own = self.state_dict()
        difference = _difference(own, state)
        if difference:
            raise ValueError(f"these averages belong to another run: {difference}")
        for key in own.keys() - {"images_seen"}:
            own[key].copy_(state[key])
        self._images_seen = int(state["images_seen"])

    def _arrived(self) -> dict[str, Tensor]:
        """The parameters as they are now, on the CPU."""
        parameters = self._parameters()
        for name, parameter in parameters.items():
            self._staging[name].copy_(parameter, non_blocking=True)
        for device in {parameter.device for parameter in parameters.values() if parameter.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return self._staging

    def _parameters(self) -> dict[str, Tensor]:
        """The parameters to average, tied ones once; asked for anew each time, as `module.to(...)` may replace them."""
        named = self._module.named_parameters()
        return {name: parameter.detach() for name, parameter in named if average_dtype(parameter.dtype)}


def _start(parameters: Mapping[str, Tensor], offload: bool) -> dict[str, Tensor]:
    """Copies in the precision of averages."""
    device = "cpu" if offload else None
    return {name: p.to(device, average_dtype(p.dtype), copy=True) for name, p in parameters.items()}


def _staging(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where parameters of a GPU arrive on the CPU: memory that is pinned, which the GPU writes into by itself."""
    return {name: torch.empty_like(p, device="cpu", pin_memory=p.is_cuda) for name, p in parameters.items()}


BATCH = 1 << 24
"""Numbers that are updated at once: enough to keep a GPU busy; a copy of them in float32 takes 64 MB."""


def _batches(averages: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names of the averages, some at a time, so that parameters in half precision need no copy of all of them."""
    names: list[str] = []
    numbers = 0
    for name, average in averages.items():
        names.append(name)
        numbers += average.numel()
        if numbers >= BATCH:
            yield names
            names, numbers = [], 0
    if names:
        yield names


def _local(tensor: Tensor) -> Tensor:
    """This device's part of a tensor that torch shards (DTensor), else the tensor itself.

    Averaging is element by element, so no communication is needed, and uneven or empty parts do no harm.
    """
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _names_of_parameters(module: nn.Module) -> dict[str, str]:
    """Every name of every parameter, with the first name of that parameter: another one where it is tied."""
    first = {parameter: name for name, parameter in module.named_parameters()}
    return {name: first[parameter] for name, parameter in module.named_parameters(remove_duplicate=False)}


def _difference(own: Mapping[str, Tensor | int], other: Mapping[str, Tensor | int]) -> str | None:
    """The first reason why `other` cannot be loaded into `own`, or None."""
    if _lengths(own) != _lengths(other):
        return f"they have lengths {_lengths(other)}, this tracker {_lengths(own)}"
    for key in sorted(own.keys() ^ other.keys()):
        return f"{key} is {'missing' if key in own else 'unknown to this module'}"
    for key in sorted(own.keys() - {"images_seen"}):
        if (own[key].shape, own[key].dtype) != (other[key].shape, other[key].dtype):
            return f"{key} is {_kind(other[key])}, expected {_kind(own[key])}"
    return None


def _lengths(state: Mapping[str, Tensor | int]) -> str:
    """The lengths in a state's keys, as text."""
    return ", ".join(sorted({key.partition("/")[0] for key in state.keys() - {"images_seen"}})) or "none"


def _kind(tensor: Tensor) -> str:
    """Type and shape of a tensor, as text."""
    return f"{tensor.dtype} {tuple(tensor.shape)}"
