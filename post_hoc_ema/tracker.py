"""Averages of a module's parameters, kept while training (Karras et al. 2024, arXiv 2312.02696v2, Section 3.1).

    PowerFunctionEMA  the averages from which post-hoc EMA starts
    TraditionalEMA    the average that EDM kept, of a fixed half-life: the baseline

Both update θ̂ <- β θ̂ + (1 - β) θ and differ in β only.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from edm2.post_hoc_ema.conversions import half_life_to_beta, half_life_to_sigma_rel, rampup_ratio_to_sigma_rel
from edm2.post_hoc_ema.profile import log_beta, sigma_rel_to_gamma
from edm2.post_hoc_ema.tensor_files import average_dtype

BATCH = 1 << 24
"""Numbers that are updated at once: enough to keep a GPU busy; a copy of them in float32 takes 64 MB."""


class ParameterAverages(ABC):
    """Base of the trackers: averages of one module, each with a length of its own that decides β.

    Averages live on the device of the parameters, in float32 at least (float64 for float64). Frozen parameters are
    averaged like any other, and those that torch shards (FSDP2) shard by shard.

    Args:
        module: Any; it is held, not copied.
        lengths: One number per average, by which it is known.
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
        self._arrivals: dict[str, Tensor] | None = None
        if offload:  # a GPU writes into pinned memory by itself, while the CPU goes on
            self._arrivals = {n: torch.empty_like(p, device="cpu", pin_memory=p.is_cuda) for n, p in parameters.items()}
        device = "cpu" if offload else None
        self._averages = {
            length: {name: p.to(device, average_dtype(p.dtype), copy=True) for name, p in parameters.items()}
            for length in lengths
        }

    @abstractmethod
    def _one_minus_beta(self, length: float, t: int, dt: int) -> float:
        """1 - β of the update at `t`, for the average of this length that was last updated at t - dt."""

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
        parameters = dict(self._module.named_parameters()) if self._arrivals is None else self._fetched(self._arrivals)
        for names in _batches(next(iter(self._averages.values()))):
            new = list(map(_local, map(parameters.__getitem__, names)))
            for length, averages in self._averages.items():
                old = list(map(_local, map(averages.__getitem__, names)))
                new = list(map(Tensor.to, new, old))  # itself, where it is of the average's type
                weight = self._one_minus_beta(length, t, t - self._images_seen)
                torch._foreach_lerp_(old, new, weight)  # θ̂ + (1 - β) (θ - θ̂)
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

    def state_dict(self) -> dict[str, Any]:
        """State to resume from: `images_seen`, and `<length>/<parameter>` for each average.

        The tensors are the tracker's own, not copies, as in `torch.nn.Module.state_dict`.
        """
        state: dict[str, Any] = {"images_seen": self._images_seen}
        for length, averages in self._averages.items():
            state |= {f"{length!r}/{name}": average for name, average in averages.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()` as if never interrupted.

        Raises:
            ValueError: Lengths, parameter names, shapes or types differ from this tracker's; nothing is changed then.
        """
        own = self.state_dict()
        if difference := _difference(own, state):
            raise ValueError(f"these averages belong to another run: {difference}")
        for key in own.keys() - {"images_seen"}:
            own[key].copy_(state[key])
        self._images_seen = int(state["images_seen"])

    def _parameters(self) -> dict[str, Tensor]:
        """The parameters to average, tied ones once; asked for anew each time, as `module.to(...)` may replace them."""
        named = self._module.named_parameters()
        return {name: parameter.detach() for name, parameter in named if average_dtype(parameter.dtype)}

    def _fetched(self, arrivals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parameters as they are now, copied to the CPU, into `arrivals`."""
        parameters = self._parameters()
        for name, parameter in parameters.items():
            arrivals[name].copy_(parameter, non_blocking=True)
        for device in {parameter.device for parameter in parameters.values() if parameter.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return arrivals


class PowerFunctionEMA(ParameterAverages):
    """Power-function averages of a module's parameters, one per EMA length.

        tracker = PowerFunctionEMA(net, sigma_rels=(0.05, 0.10))
        for images_seen in ...:
            ...                                     # optimizer.step()
            tracker.update(images_seen)             # after every step, or after every tenth
        weights = tracker.average(0.10)             # a state dict of `net`

    Averages live on the device of the parameters, in float32 at least (float64 for float64). Frozen parameters are
    averaged like any other, and those that torch shards (FSDP2) shard by shard. Where a step is less than a millionth
    of the run, float32 rounds away part of so small an update: call `update` every n steps then, which β allows for.
    Where memory on the GPU is short, the averages may live on the CPU (`offload`); an update then takes as long as the
    parameters need to get there, so one per ten steps or so is the price to pay.
    """

    def __init__(self, module: nn.Module, sigma_rels: Sequence[float] = (0.05, 0.10), *, offload: bool = False) -> None:
        """Start with zero images seen; until the first update an average is a copy of the parameters.

        Args:
            module: Any; it is held, not copied.
            sigma_rels: EMA lengths.
            offload: Keep the averages on the CPU. Not for sharded parameters, which FSDP2 offloads itself.

        Raises:
            ValueError: EMA lengths outside (0, 12^-0.5) or twice the same, nothing to average, or shards to offload.
        """
        self._sigma_rels = tuple(float(sigma_rel) for sigma_rel in sigma_rels)
        self._gammas = dict(zip(self._sigma_rels, sigma_rel_to_gamma(self._sigma_rels), strict=True))
        if not self._sigma_rels or len(set(self._sigma_rels)) < len(self._sigma_rels):
            raise ValueError(f"sigma_rels={self._sigma_rels} must hold one EMA length or more, each once")
        super().__init__(module, self._sigma_rels, offload)

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """EMA lengths of the averages."""
        return self._sigma_rels

    def average(self, sigma_rel: float) -> dict[str, Tensor]:
        """Return a state dict of the module, with averages for its parameters and copies of its buffers.

        Tied parameters appear under each of their names and stay tied. The tensors are the caller's to keep, and lie
        where the parameters do.

        Raises:
            ValueError: No average of this EMA length is tracked.
        """
        if sigma_rel not in self._averages:
            raise ValueError(f"sigma_rel={sigma_rel} is not tracked; tracked are {self._sigma_rels}")
        return self._average(sigma_rel)

    def _one_minus_beta(self, length: float, t: int, dt: int) -> float:
        """1 - β of Eq. 127; β = 0 in the first update (dt = t), so initial weights do not count."""
        return -math.expm1(log_beta(self._gammas[length], t, dt))


class TraditionalEMA(ParameterAverages):
    """An average whose half-life is constant, but for a ramp-up while the run is short (Appendices B.1 and C).

        θ̂ <- β θ̂ + (1 - β) θ,    β = 2^(-dt / min(λ, r t))

    As long as r t < λ it is a power-function average in disguise, of the EMA length `rampup_ratio_to_sigma_rel(r)`:
    0.063 for EDM's r = 0.05. Nothing can be reconstructed from it: it is here as the baseline (config A).
    """

    def __init__(self, module: nn.Module, half_life: int, rampup_ratio: float = 0.05) -> None:
        """Start with zero images seen; until the first update the average is a copy of the parameters.

        Args:
            module: Any; it is held, not copied.
            half_life: λ in images.
            rampup_ratio: r, the longest half-life as a fraction of the images seen.

        Raises:
            ValueError: A value is not positive, or there is nothing to average.
        """
        if not half_life > 0 or not rampup_ratio > 0:
            raise ValueError(f"half_life={half_life} and rampup_ratio={rampup_ratio} must be positive")
        self._half_life = half_life
        self._rampup_ratio = rampup_ratio
        super().__init__(module, [half_life])

    @property
    def sigma_rel(self) -> float:
        """Standard deviation of the profile at the last update, as a fraction of the images seen."""
        if self._rampup_ratio * self._images_seen <= self._half_life:
            return float(rampup_ratio_to_sigma_rel(self._rampup_ratio))
        return float(half_life_to_sigma_rel(self._half_life, self._images_seen))

    def average(self) -> dict[str, Tensor]:
        """Return a state dict of the module, with averages for its parameters and copies of its buffers."""
        return self._average(self._half_life)

    def _one_minus_beta(self, length: float, t: int, dt: int) -> float:
        """1 - β of the class, at time t."""
        return float(1 - half_life_to_beta(min(length, self._rampup_ratio * t), dt))


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
    """Part of this device of a tensor that torch shards (DTensor), else the tensor itself.

    Averaging is element by element, so no communication is needed, and uneven or empty parts do no harm.
    """
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _names_of_parameters(module: nn.Module) -> dict[str, str]:
    """Every name of every parameter, with the first name of that parameter: another one where it is tied."""
    first = {parameter: name for name, parameter in module.named_parameters()}
    return {name: first[parameter] for name, parameter in module.named_parameters(remove_duplicate=False)}


def _difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first reason why `other` cannot be loaded into `own`, or None."""
    if _lengths(own) != _lengths(other):
        return f"they have lengths {_lengths(other)}, this tracker {_lengths(own)}"
    for key in sorted(own.keys() ^ other.keys()):
        return f"{key} is {'missing' if key in own else 'unknown to this module'}"
    for key in sorted(own.keys() - {"images_seen"}):
        if (own[key].shape, own[key].dtype) != (other[key].shape, other[key].dtype):
            return f"{key} is {_kind(other[key])}, expected {_kind(own[key])}"
    return None


def _lengths(state: Mapping[str, Any]) -> str:
    """The lengths in a state's keys, as text."""
    return ", ".join(sorted({key.partition("/")[0] for key in state.keys() - {"images_seen"}})) or "none"


def _kind(tensor: Tensor) -> str:
    """Type and shape of a tensor, as text."""
    return f"{tensor.dtype} {tuple(tensor.shape)}"
