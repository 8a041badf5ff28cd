"""Averages kept while training: PowerFunctionEMA (Karras et al. 2024, arXiv 2312.02696v2, Section 3.1)."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from operator import index

import torch
from torch import Tensor, nn

from edm2.post_hoc_ema.dtypes import average_dtype
from edm2.post_hoc_ema.profile import power_function_step, sigma_rel_to_gamma


class PowerFunctionEMA:
    """Power-function averages of a module's parameters, one per relative width.

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
            sigma_rels: Relative widths.
            offload: Keep the averages on the CPU. Not for sharded parameters, which FSDP2 offloads itself.

        Raises:
            ValueError: Widths outside (0, 12^-0.5) or twice the same, nothing to average, or shards to offload.
        """
        self._module = module
        self._sigma_rels = tuple(float(sigma_rel) for sigma_rel in sigma_rels)
        self._images_seen = 0
        sigma_rel_to_gamma(self._sigma_rels)  # refuses impossible widths now, not after the first step
        if not self._sigma_rels or len(set(self._sigma_rels)) < len(self._sigma_rels):
            raise ValueError(f"sigma_rels={self._sigma_rels} must hold one width or more, each once")
        parameters = self._parameters()
        if not parameters:
            raise ValueError(f"{type(module).__name__} has no floating-point parameters to average")
        if offload and any(hasattr(p, "to_local") for p in parameters.values()):
            raise ValueError("sharded parameters cannot be offloaded here; use CPUOffloadPolicy of fully_shard")
        self._offload = offload
        self._staging = _staging(parameters) if offload else {}
        self._averages = {sigma_rel: _start(parameters, offload) for sigma_rel in self._sigma_rels}

    @property
    def images_seen(self) -> int:
        """Images seen at the last update."""
        return self._images_seen

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """Relative widths of the averages."""
        return self._sigma_rels

    @torch.no_grad()
    def update(self, images_seen: int) -> None:
        """Take in the parameters as they are now: θ̂ <- θ̂ + (1 - β)(θ - θ̂), β as in Eq. 127.

        The interval since the last update may be of any length and differ from update to update: the average is the
        integral of the profile times the parameters, these taken as constant since the last update. The first update
        gives the initial parameters no share (β = 0).

        Raises:
            ValueError: `images_seen` does not exceed that of the last update.
        """
        t = index(images_seen)
        if t <= self._images_seen:
            raise ValueError(f"images_seen={t} must exceed {self._images_seen}, where the averages were last updated")
        parameters = self._arrived() if self._offload else self._parameters()
        steps = {s: float(power_function_step(s, t, t - self._images_seen)) for s in self._sigma_rels}
        for names in _batches(self._averages[self._sigma_rels[0]]):
            new = [_local(parameters[name]) for name in names]
            for sigma_rel, averages in self._averages.items():
                old = [_local(averages[name]) for name in names]
                new = [p.to(average) for p, average in zip(new, old, strict=True)]  # itself, if it is of this type
                torch._foreach_lerp_(old, new, steps[sigma_rel])
        self._images_seen = t

    @torch.no_grad()
    def average(self, sigma_rel: float) -> dict[str, Tensor]:
        """A state dict of the module, with averages for its parameters and copies of its buffers.

        Tied parameters appear under each of their names and stay tied. The tensors are the caller's to keep, and lie
        where the parameters do.

        Raises:
            ValueError: No average of this width is tracked.
        """
        if sigma_rel not in self._averages:
            raise ValueError(f"sigma_rel={sigma_rel} is not tracked; tracked are {self._sigma_rels}")
        devices = {name: p.device for name, p in self._parameters().items()}
        averages = {name: average.to(devices[name], copy=True) for name, average in self._averages[sigma_rel].items()}
        names = _names_of_parameters(self._module).items()
        averages = {name: averages[first] for name, first in names if first in averages}
        live = self._module.state_dict()
        return {name: averages[name] if name in averages else deepcopy(value) for name, value in live.items()}

    def state_dict(self) -> dict[str, Tensor | int]:
        """What resuming needs: `images_seen`, and `<sigma_rel>/<parameter>` for each average.

        The tensors are the tracker's own, not copies, as in `torch.nn.Module.state_dict`.
        """
        state: dict[str, Tensor | int] = {"images_seen": self._images_seen}
        for sigma_rel, averages in self._averages.items():
            state |= {f"{sigma_rel!r}/{name}": average for name, average in averages.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Continue from a `state_dict()` as if never interrupted.

        Raises:
            ValueError: Widths, parameter names, shapes or types differ from this tracker's; nothing is changed then.
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
    if _widths(own) != _widths(other):
        return f"they have sigma_rel {_widths(other)}, this tracker {_widths(own)}"
    for key in sorted(own.keys() ^ other.keys()):
        return f"{key} is {'missing' if key in own else 'unknown to this module'}"
    for key in sorted(own.keys() - {"images_seen"}):
        if (own[key].shape, own[key].dtype) != (other[key].shape, other[key].dtype):
            return f"{key} is {_kind(other[key])}, expected {_kind(own[key])}"
    return None


def _widths(state: Mapping[str, Tensor | int]) -> str:
    """The widths in a state's keys, as text."""
    return ", ".join(sorted({key.partition("/")[0] for key in state.keys() - {"images_seen"}})) or "none"


def _kind(tensor: Tensor) -> str:
    """Type and shape of a tensor, as text."""
    return f"{tensor.dtype} {tuple(tensor.shape)}"
