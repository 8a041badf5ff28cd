"""Averages of a module's parameters: the base of all trackers, which say what β is.

θ̂ <- β θ̂ + (1 - β) θ        after every step, or after several
"""

import cmath
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from operator import index
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from edm2.post_hoc_ema.modules import WRAPPED, Keep, TrackedModule, sharded_like
from edm2.post_hoc_ema.tensor_files import average_dtype

Module: TypeAlias = nn.Module | Iterable[Tensor]
"""Form in which weights are handed to a tracker: a module, or its parameters."""

BATCH = 1 << 24
"""Numbers that are updated at once: enough to keep a GPU busy; a copy of them in float32 takes 64 MB."""

PROBE, PROBE_NUMBERS = 16, 4096
"""Every update on a CPU looks for NaN in at most so many tensors, the smallest ones, of so many numbers each. A loss
that is not finite leaves its mark on all tensors."""

CHECK_EVERY = 100
"""Updates between two looks at all numbers: on a GPU, a look waits for the device."""


class Average(dict[str, Any]):
    """A state dict with averages in the place of parameters.

    Attributes:
        metadata: What `write_snapshot` adds to the metadata of a file: which tensors are copies, and the run.
    """

    metadata: dict[str, Any]


class ParameterAverages(ABC):
    """Base of the trackers: averages of one module, each with a length of its own that decides β.

    Averages live on the device of the parameters, in float32 at least (float64 for float64). Frozen parameters are
    averaged like any other unless `keep` leaves them out, and those that torch shards (FSDP2) shard by shard.

    Args:
        module: Any, also compiled or in DDP, or a list of parameters; it is held, not copied.
        lengths: One number per average, or a name, by which it is known.
        offload: Keep the averages on the CPU. Not for sharded parameters, which FSDP2 offloads itself.
        keep: Parameters to average, by name and tensor; default: all.
        watch: Look for NaN and infinity in parameters. Not for trainers that do, and for counts of operations.

    Attributes:
        tracked: The module.

    Raises:
        ValueError: Nothing to average, a parameter that cannot be averaged, or shards to offload.
    """

    def __init__(
        self,
        module: Module,
        lengths: Sequence[float | str],
        offload: bool = False,
        keep: Keep | None = None,
        watch: bool = True,
    ) -> None:
        self.tracked = TrackedModule(module, keep)
        self._watch = watch
        self._images_seen = self._start = self._resumed = self._updates = 0
        parameters = self.tracked.parameters()
        for name, parameter in zip(self.tracked.names, parameters, strict=True):
            if watch and parameter.is_meta:
                raise ValueError(
                    f"parameter {name} is on the meta device; give it values first (module.to_empty, load_state_dict)"
                )
        if offload and any(hasattr(p, "to_local") for p in parameters):
            raise ValueError("sharded parameters cannot be offloaded here; use CPUOffloadPolicy of fully_shard")
        self._arrivals: list[Tensor] | None = None
        if offload:  # a GPU writes into pinned memory by itself, while the CPU goes on
            self._arrivals = [torch.empty_like(p, device="cpu", pin_memory=p.is_cuda) for p in parameters]
        device = "cpu" if offload else None
        self._averages: dict[Any, dict[str, Tensor]] = {
            length: {
                name: p.detach().to(device, average_dtype(p.dtype), copy=True)
                for name, p in zip(self.tracked.names, parameters, strict=True)
            }
            for length in lengths
        }
        self._plan()

    @abstractmethod
    def _one_minus_beta(self, length: Any, t: int, dt: int) -> float:
        """1 - β of the update at `t`, for the average of this length that was last updated at t - dt."""

    @property
    def images_seen(self) -> int:
        """Images seen at the last update."""
        return self._images_seen

    @torch.no_grad()
    def begin(self, images_seen: int) -> None:
        """Begin after `images_seen` images, with a copy of the parameters as they are now; before the first update.

        The clock counts from the beginning of training all the same. What the profile gives to times before stays on
        this copy, and files say so.
        """
        if self._images_seen:
            raise ValueError(f"these averages have begun already, {self._images_seen} images ago; make a new tracker")
        self._images_seen = self._start = index(images_seen)
        for averages in self._averages.values():
            for average, parameter in zip(averages.values(), self.tracked.parameters(), strict=True):
                average.copy_(parameter)

    @torch.no_grad()
    def update(self, images_seen: int, module: Module | None = None) -> None:
        """Take in the parameters as they are now.

        The interval since the last update may be of any length and differ from update to update; the parameters are
        taken as constant since then.

        Args:
            images_seen: The clock: images, or steps, or tokens, but always the same.
            module: Another module of the same parameters, to be followed from now on.

        Raises:
            ValueError: `images_seen` does not exceed that of the last update, parameters were added, removed, renamed
                or reshaped since, or one is NaN or infinite; nothing is changed then. On a GPU, and if some large
                tensor alone is not finite, that is noticed within `CHECK_EVERY` updates, and before a file is written.
        """
        t = index(images_seen)
        if t <= self._images_seen:
            raise ValueError(f"images_seen={t} must exceed {self._images_seen}, where the averages were last updated")
        if module is not None:
            self.tracked.attach(module)
        parameters = self._parameters()
        if list(map(Tensor.size, parameters)) != self._shapes:
            self._refuse_shapes(parameters)
        if self._arrivals is not None:
            parameters = self._fetched(parameters, self._arrivals)
        if self._probe and not cmath.isfinite(torch.cat([parameters[i].flatten() for i in self._probe]).sum().item()):
            self._refuse_nonfinite(parameters, f"in the step before {t} images")
        weights = [self._one_minus_beta(length, t, t - self._images_seen) for length in self._averages]
        for part, of_lengths in self._batches:
            new = parameters[part]
            for old, weight in zip(of_lengths, weights, strict=True):
                new = list(map(Tensor.to, new, old))  # itself, where it is of the average's type
                torch._foreach_lerp_(old, new, weight)  # θ̂ + (1 - β) (θ - θ̂)
        self._images_seen = t
        self._updates += 1
        if self._watch and not self._updates % CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Raise ValueError if an average is NaN or infinite, as it is for good after one such step."""
        for averages in self._averages.values():
            self._refuse_nonfinite(averages.values(), f"in one of the steps before {self._images_seen} images")

    @torch.no_grad()
    def _average(self, length: float | str) -> Average:
        """A state dict of the module, with averages for its parameters and copies of its buffers."""
        live, aliases = self.tracked.state_dict(), self.tracked.aliases()
        devices = {name: p.device for name, p in zip(self.tracked.names, self.tracked.parameters(), strict=True)}
        averages = {name: average.to(devices[name], copy=True) for name, average in self._averages[length].items()}
        average = Average(
            {name: averages[aliases[name]] if name in aliases else deepcopy(value) for name, value in live.items()}
        )
        average.metadata = {"buffers": [name for name in live if name not in aliases]}
        return average

    def state_dict(self) -> dict[str, Any]:
        """State to resume from: the clock, and `<length>/<parameter>` for each average.

        The tensors are the tracker's own, not copies, as in `torch.nn.Module.state_dict`.
        """
        state: dict[str, Any] = {"images_seen": self._images_seen, "start": self._start}
        for length, averages in self._averages.items():
            state |= {f"{length}/{name}": average for name, average in averages.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()` as if never interrupted.

        Raises:
            ValueError: Lengths, parameter names, shapes or types differ from this tracker's; nothing is changed then.
        """
        own = _tensors(self.state_dict())
        given = {_plain_key(key, own): value for key, value in _tensors(state).items()}
        if difference := _difference(own, given):
            raise ValueError(f"these averages belong to another run: {difference}")
        for key, average in own.items():
            average.copy_(sharded_like(given[key], average))
        self._images_seen = self._resumed = int(state["images_seen"])
        self._start = int(state.get("start", 0))  # earlier versions always began at 0

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        """Move the averages to a device, or keep them in float64.

        Raises:
            ValueError: `dtype` is less precise than float32, in which an update would be rounded away.
        """
        if dtype is not None and average_dtype(dtype) != dtype:
            raise ValueError(f"averages cannot be kept in {dtype}: choose float32 or float64, and any type for files")
        for averages in self._averages.values():
            for name, x in averages.items():
                averages[name] = x.to(device, None if dtype is None else torch.promote_types(x.dtype, dtype))
        self._plan()

    def _plan(self) -> None:
        """Divide the averages into batches, so that parameters in half precision need no copy of all of them."""
        averages = [list(map(_local, averages.values())) for averages in self._averages.values()]
        parts: list[slice] = []
        begin = numbers = 0
        for end, size in enumerate(map(Tensor.numel, averages[0]), 1):
            numbers += size
            if numbers >= BATCH or end == len(averages[0]):
                parts.append(slice(begin, end))
                begin, numbers = end, 0
        self._batches = [(part, [of_length[part] for of_length in averages]) for part in parts]
        self._shapes = list(map(Tensor.size, averages[0]))
        small = [
            i
            for i, (average, parameter) in enumerate(zip(averages[0], self._parameters(), strict=True))
            if self._watch
            and average.numel() <= PROBE_NUMBERS
            and average.device.type == "cpu"
            and parameter.itemsize > 1
        ]
        self._probe = sorted(small, key=lambda i: averages[0][i].numel())[:PROBE]

    def _parameters(self) -> list[Tensor]:
        """The parameters to average; of sharded ones, the part of this process."""
        return list(map(_local, self.tracked.parameters()))

    def _fetched(self, parameters: list[Tensor], arrivals: list[Tensor]) -> list[Tensor]:
        """The parameters as they are now, copied to the CPU, into `arrivals`."""
        for arrival, parameter in zip(arrivals, parameters, strict=True):
            arrival.copy_(parameter, non_blocking=True)
        for device in {parameter.device for parameter in parameters if parameter.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return arrivals

    def _refuse_shapes(self, parameters: list[Tensor]) -> None:
        """Raise ValueError that names the first parameter of another shape than its average."""
        for name, parameter, shape in zip(self.tracked.names, parameters, self._shapes, strict=True):
            if parameter.size() != shape:
                raise ValueError(
                    f"parameter {name} is {tuple(parameter.size())} now and was {tuple(shape)} when its average began; "
                    "make the tracker when the module has its final shape and shards"
                )

    def _refuse_nonfinite(self, tensors: Iterable[Tensor], when: str) -> None:
        """Raise ValueError that names the first tensor with NaN or infinity."""
        for name, tensor in zip(self.tracked.names, map(_local, tensors), strict=True):
            tensor = tensor.to(average_dtype(tensor.dtype))
            if not tensor.sum().isfinite() and not tensor.isfinite().all():  # a sum may overflow
                raise ValueError(
                    f"parameter {name} has become NaN or infinite {when}; go on from a checkpoint before that, "
                    "weights and averages"
                )


def _local(tensor: Tensor) -> Tensor:
    """Part of this device of a tensor that torch shards (DTensor), else the tensor itself.

    Averaging is element by element, so no communication is needed, and uneven or empty parts do no harm.
    """
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The averages in a state, by their keys."""
    return {key: value for key, value in state.items() if "/" in key}


def _plain_key(key: str, own: Mapping[str, Any]) -> str:
    """Key of a state without the wrappers whose names earlier versions kept."""
    for wrapper in WRAPPED:
        key = key.replace(f"{wrapper}.", "")
    return key if key in own else key.replace("/module.", "/", 1)


def _difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first reason why `other` cannot be loaded into `own`, or None."""
    if _lengths(own) != _lengths(other):
        return f"they have lengths {_lengths(other)}, this tracker {_lengths(own)}"
    for key in sorted(own.keys() ^ other.keys()):
        return f"{key} is {'missing' if key in own else 'unknown to this module'}"
    for key in sorted(own):
        if (own[key].shape, own[key].dtype) != (other[key].shape, other[key].dtype):
            return f"{key} is {_kind(other[key])}, expected {_kind(own[key])}"
    return None


def _lengths(state: Mapping[str, Any]) -> str:
    """The lengths in a state's keys, as text."""
    return ", ".join(sorted({key.partition("/")[0] for key in state})) or "none"


def _kind(tensor: Tensor) -> str:
    """Type and shape of a tensor, as text."""
    return f"{tensor.dtype} {tuple(tensor.shape)}"
