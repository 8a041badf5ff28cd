"""Averages of a module's parameters, kept while training (Karras et al. 2024, arXiv 2312.02696v2, Section 3.1).

    PowerFunctionEMA  the averages from which post-hoc EMA starts
    IntervalMeans     plain means between two files, from which it can start as well, in half the memory
    TraditionalEMA    the average that EDM kept, of a fixed half-life: the baseline

All update θ̂ <- β θ̂ + (1 - β) θ and differ in β only.
"""

import cmath
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from operator import index
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import torch
from torch import Tensor, nn

from edm2.post_hoc_ema.conversions import half_life_to_beta, half_life_to_sigma_rel, rampup_ratio_to_sigma_rel
from edm2.post_hoc_ema.files import visible_files
from edm2.post_hoc_ema.modules import WRAPPED, Keep, TrackedModule, is_first_process, sharded_like, whole
from edm2.post_hoc_ema.profile import sigma_rel_to_gamma
from edm2.post_hoc_ema.snapshot import SafetensorsSnapshot, read_metadata, snapshot_name, write_snapshot
from edm2.post_hoc_ema.tails import PowerProfile, box_profile
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


class SnapshotTracker(ParameterAverages):
    """A tracker whose averages are stored, to reconstruct others from: a run, known by its files.

    Attributes:
        run: Identifier in the files and in the state; None for a run of an earlier version, whose files have none.
    """

    run: str | None

    def __init__(
        self, module: Module, lengths: Sequence[float | str], offload: bool, keep: Keep | None, watch: bool = True
    ) -> None:
        self.run = uuid4().hex
        self._known: set[Path] = set()
        super().__init__(module, lengths, offload, keep, watch)

    @abstractmethod
    def _described(self, length: Any, t: int) -> tuple[str, dict[str, Any]]:
        """Name of the file of an average at time t, and what its metadata say."""

    def files(self) -> Iterator[tuple[str, Average]]:
        """Names of the files that `save` writes now, and what is in them."""
        for length in self._averages:
            name, entries = self._described(length, self._images_seen)
            average = self._average(length)
            average.metadata |= {"images_seen": self._images_seen, **entries}
            yield name, average

    def save(
        self,
        folder: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Store every average in a folder, as snapshots for `reconstruct`.

        In a job of several processes all of them call this, since shards are gathered, and the first one writes.

        Args:
            folder: Of this run alone; created if missing.
            dtype: Storage type of averages, such as torch.float16; None keeps float32. Buffers keep theirs, and so do
                averages that it cannot hold.
            metadata: Further entries for the files.

        Returns:
            The files.

        Raises:
            ValueError: The folder holds files of another run, or later ones of this run that were given up when it was
                resumed; or an average is NaN or infinite.
        """
        self.check()
        if is_first_process():
            for path in self.abandoned(folder):
                raise ValueError(
                    f"{path} was stored after {self._resumed} images, where this run was resumed: remove what came "
                    "after that, or store into another folder"
                )
        paths = []
        for name, average in self.files():
            path = Path(folder) / name
            tensors = dict(whole(average))
            if is_first_process():
                write_snapshot(path, tensors, {**average.metadata, **(metadata or {})}, dtype)
            self._known.add(path)
            paths.append(path)
        return paths

    def abandoned(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Files of this run in a folder that are later than where it was resumed, by name.

        Raises:
            ValueError: A file is of another run, or of this one, whose state was not loaded.
        """
        later = []
        for path in visible_files(folder, "snapshot-*.safetensors"):
            if path in self._known or "reconstructed_from" in (metadata := read_metadata(path)):
                continue
            if metadata.get("run") != self.run:
                raise ValueError(
                    f"{path} is of another run; choose another folder, or load the tracker's state first to continue "
                    "that run (load_state_dict)"
                )
            if metadata["images_seen"] > self._resumed:
                later.append(path)
            else:
                self._known.add(path)
        return later

    def state_dict(self) -> dict[str, Any]:
        """State to resume from: clock, run, and `<length>/<parameter>` for each average.

        The tensors are the tracker's own, not copies, as in `torch.nn.Module.state_dict`.
        """
        return {"run": self.run, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()` as if never interrupted; of an earlier version's state, its unnamed run.

        Raises:
            ValueError: Lengths, parameter names, shapes or types differ from this tracker's; nothing is changed then.
        """
        super().load_state_dict(state)
        self.run = state.get("run")
        self._known = set()

    def resume(self, folder: str | os.PathLike[str], images_seen: int) -> None:
        """Continue from the files that were stored at a time, where no state was kept.

        To the bit if they are in float32; else averages are rounded once, as they are in the files.

        Raises:
            ValueError: There are no files of this time, or they are of other parameters; nothing is changed then.
        """
        state: dict[str, Any] = {"images_seen": images_seen}
        for length, averages in self._averages.items():
            path = Path(folder) / self._described(length, images_seen)[0]
            if not path.exists():
                raise ValueError(f"{path} is missing; resume at a time at which averages were stored")
            file = SafetensorsSnapshot(path)
            state |= {"run": file.metadata.get("run"), "start": self._start_after(file)}
            for name in averages.keys() & {*file.names}:
                state[f"{length}/{name}"] = file.read(name).to(averages[name].dtype)
        self.load_state_dict(state)

    def _start_after(self, file: SafetensorsSnapshot) -> int:
        """When the averages begin that go on from a file."""
        return int(file.profile.start)

    def _average(self, length: float | str) -> Average:
        average = super()._average(length)
        average.metadata |= {} if self.run is None else {"run": self.run}
        return average


class PowerFunctionEMA(SnapshotTracker):
    """Power-function averages of a module's parameters, one per EMA length.

        tracker = PowerFunctionEMA(net, sigma_rels=(0.05, 0.10))
        for images_seen in ...:
            ...                                     # optimizer.step()
            tracker.update(images_seen)             # after every step, or after every tenth
            if images_seen % interval == 0:
                tracker.save(folder, torch.float16) # for `reconstruct`
        weights = tracker.average(0.10)             # a state dict of `net`

    Averages live on the device of the parameters, in float32 at least (float64 for float64). Frozen parameters are
    averaged like any other unless `keep` leaves them out, and those that torch shards (FSDP2) shard by shard. Where a
    step is less than a millionth of the run, float32 rounds away part of so small an update: call `update` every n
    steps then, which β allows for.
    Where memory on the GPU is short, the averages may live on the CPU (`offload`); an update then takes as long as the
    parameters need to get there, so one per ten steps or so is the price to pay.
    """

    def __init__(
        self,
        module: Module,
        sigma_rels: Sequence[float] = (0.05, 0.10),
        *,
        offload: bool = False,
        keep: Keep | None = None,
        watch: bool = True,
    ) -> None:
        """Start with zero images seen; until the first update an average is a copy of the parameters.

        Args:
            module: Any, also compiled or in DDP, or a list of parameters; it is held, not copied.
            sigma_rels: EMA lengths.
            offload: Keep the averages on the CPU. Not for sharded parameters, which FSDP2 offloads itself.
            keep: Parameters to average, by name and tensor, such as lambda name, p: p.requires_grad; default: all.
                Averages and files have no others.
            watch: Look for NaN and infinity in parameters; not where the trainer does.

        Raises:
            ValueError: EMA lengths outside (0, 12^-0.5), twice the same, or with the same name of files; nothing to
                average, a parameter that cannot be averaged, or shards to offload.
        """
        self._sigma_rels = tuple(float(sigma_rel) for sigma_rel in sigma_rels)
        self._gammas = {s: float(sigma_rel_to_gamma(s)) for s in self._sigma_rels}
        if not self._sigma_rels or len(set(self._sigma_rels)) < len(self._sigma_rels):
            raise ValueError(f"sigma_rels={self._sigma_rels} must hold one EMA length or more, each once")
        if len({snapshot_name(0, s) for s in self._sigma_rels}) < len(self._sigma_rels):
            raise ValueError(f"sigma_rels={self._sigma_rels} must differ in the four digits that names of files have")
        super().__init__(module, self._sigma_rels, offload, keep, watch)

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """EMA lengths of the averages."""
        return self._sigma_rels

    def average(self, sigma_rel: float) -> Average:
        """Return a state dict of the module, with averages for its parameters and copies of its buffers.

        Names are those of the module without torch.compile or DDP. Tied parameters appear under each of their names and
        stay tied; parameters that are not tracked do not appear. The tensors are the caller's to keep, and lie where
        the parameters do.

        Raises:
            ValueError: No average of this EMA length is tracked.
        """
        if sigma_rel not in self._averages:
            raise ValueError(f"sigma_rel={sigma_rel} is not tracked; tracked are {self._sigma_rels}")
        return self._average(sigma_rel)

    def _described(self, length: float, t: int) -> tuple[str, dict[str, Any]]:
        """Name of the file of an average at time t, and what its metadata say."""
        profile = PowerProfile(t, self._gammas[length] + 1, start=self._start)
        return snapshot_name(t, length), {
            "sigma_rel": length,
            **({"profile": profile.to_json()} if self._start else {}),
        }

    def _one_minus_beta(self, length: float, t: int, dt: int) -> float:
        """1 - β of Eq. 127; β = 0 in the first update (dt = t), so initial weights do not count."""
        return 1.0 if dt == t else -math.expm1((self._gammas[length] + 1) * math.log1p(-dt / t))


class IntervalMeans(SnapshotTracker):
    """Plain means of a module's parameters between two files: one average in the place of two.

        tracker = IntervalMeans(net)
        for images_seen in ...:
            ...                                     # optimizer.step()
            tracker.update(images_seen)
            if images_seen % interval == 0:
                tracker.save(folder, torch.float16) # the mean since the last file

    Rebuilt lengths are as good as from two power functions where files are many: with 64 of them, the error over a
    random walk is at most 0.0016 of its way for every length from 0.03 on. No weights are wasted on overlaps, and no
    length has to be chosen; but until files are there, no average is.
    """

    def __init__(self, module: Module, *, offload: bool = False, keep: Keep | None = None) -> None:
        """Start with zero images seen; arguments and errors as of `PowerFunctionEMA`."""
        super().__init__(module, ["mean"], offload, keep)

    def average(self) -> Average:
        """Return a state dict of the module: means since the last file for its parameters, copies of its buffers."""
        return self._average("mean")

    def files(self) -> Iterator[tuple[str, Average]]:
        """Name of the file that `save` writes now, and what is in it; none if there was no update since the last."""
        return super().files() if self._images_seen > self._start else iter(())

    def _described(self, length: str, t: int) -> tuple[str, dict[str, Any]]:
        """Name of the file of the mean at time t, and what its metadata say."""
        return f"snapshot-{t:012d}-mean.safetensors", {"profile": box_profile(self._start, t).to_json()}

    def _start_after(self, file: SafetensorsSnapshot) -> int:
        """When the mean begins that goes on from a file."""
        return file.images_seen

    def save(
        self,
        folder: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Store the mean since the last file, and begin the next; arguments, result and errors as of the base."""
        paths = super().save(folder, dtype, metadata)
        self._start = self._images_seen
        return paths

    def _one_minus_beta(self, length: str, t: int, dt: int) -> float:
        """1 - β: the new weights' part of the interval."""
        return dt / (t - self._start)


class TraditionalEMA(ParameterAverages):
    """An average whose half-life is constant, but for a ramp-up while the run is short (Appendices B.1 and C).

        θ̂ <- β θ̂ + (1 - β) θ,    β = 2^(-dt / min(λ, r t))

    As long as r t < λ it is a power-function average in disguise, of the EMA length `rampup_ratio_to_sigma_rel(r)`:
    0.063 for EDM's r = 0.05. Nothing can be reconstructed from it: it is here as the baseline (config A).
    """

    def __init__(self, module: Module, half_life: int, rampup_ratio: float = 0.05) -> None:
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
        super().__init__(module, [half_life], watch=False)

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
