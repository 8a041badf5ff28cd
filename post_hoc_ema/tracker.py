"""Averages of a module's parameters, kept while training (Karras et al. 2024, arXiv 2312.02696v2, Section 3.1).

    PowerFunctionEMA  the averages from which post-hoc EMA starts
    IntervalMeans     plain means between two files, from which it can start as well, in half the memory
    TraditionalEMA    the average that EDM kept, of a fixed half-life: the baseline

All update θ̂ <- β θ̂ + (1 - β) θ and differ in β only.
"""

import math
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from edm2.post_hoc_ema.averages import Average, Module, ParameterAverages
from edm2.post_hoc_ema.conversions import half_life_to_beta, half_life_to_sigma_rel, rampup_ratio_to_sigma_rel
from edm2.post_hoc_ema.files import visible_files
from edm2.post_hoc_ema.modules import Keep, is_first_process, wait_for_others, whole
from edm2.post_hoc_ema.profile import sigma_rel_to_gamma
from edm2.post_hoc_ema.snapshot import (
    SafetensorsSnapshot,
    metadata_json,
    read_metadata,
    snapshot_name,
    write_snapshot,
)
from edm2.post_hoc_ema.tails import PowerProfile, box_profile
from edm2.post_hoc_ema.tensor_files import CODES

OWN_ENTRIES = {"images_seen", "sigma_rel", "profile", "buffers", "run", "reconstructed_from"}
"""Metadata by which files are found, and known to be of a run."""


def check_storage(dtype: torch.dtype | None, metadata: Mapping[str, Any] | None) -> None:
    """Raise unless averages can be stored in this type, with these further metadata.

    Raises:
        ValueError: The type holds no fractions, or an entry has the name of one of the files' own.
        TypeError: Metadata that are no JSON.
    """
    if dtype is not None and not (dtype in CODES and dtype.is_floating_point):
        raise ValueError(f"dtype={dtype}: averages are stored as floating-point numbers, such as torch.float16")
    if taken := sorted({*(metadata or {})} & OWN_ENTRIES):
        raise ValueError(f"metadata: files have an entry {taken[0]} of their own; choose another name")
    metadata_json(metadata or {})


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
    def _file_name(self, length: Any, t: int) -> str:
        """Name of the file of an average at time t."""

    @abstractmethod
    def _profile_entries(self, length: Any) -> dict[str, Any]:
        """Metadata that tell the profile of an average of now."""

    @property
    def _since(self) -> int:
        """Time at which the averages of now begin."""
        return self._start

    def current(self) -> Iterator[tuple[str, Average]]:
        """Averages of now with the names of their files; none if there was no update since `begin`."""
        if self._images_seen > self._since or not self._images_seen:
            for length in self._averages:
                average = self._average(length)
                average.metadata |= {"images_seen": self._images_seen, **self._profile_entries(length)}
                yield self._file_name(length, self._images_seen), average

    def files(self) -> Iterator[tuple[str, Average]]:
        """Names of the files that `save` writes now, and what is in them."""
        return self.current()

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
                resumed; an average is NaN or infinite; or as `check_storage`.
        """
        check_storage(dtype, metadata)
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
        wait_for_others(self.tracked.parameters())  # until the first one has written: what is rebuilt next reads it
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
            path = Path(folder) / self._file_name(length, images_seen)
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

    def _file_name(self, length: float, t: int) -> str:
        return snapshot_name(t, length)

    def _profile_entries(self, length: float) -> dict[str, Any]:
        if not self._start:
            return {"sigma_rel": length}
        profile = PowerProfile(self._images_seen, self._gammas[length] + 1, start=self._start)
        return {"sigma_rel": length, "profile": profile.to_json()}

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
        self._stored_since: int | None = None

    def average(self) -> Average:
        """Return a state dict of the module: means since the last file for its parameters, copies of its buffers."""
        return self._average("mean")

    def files(self) -> Iterator[tuple[str, Average]]:
        """Name of the file that `save` writes now, and what is in it; none if there was no update since the last."""
        return super().files() if self._images_seen > self._start else iter(())

    @property
    def _since(self) -> int:
        """Time at which the mean of now begins: of the one that was just stored, until there is another."""
        since = self._stored_since
        return since if since is not None and self._images_seen == self._start else self._start

    def _file_name(self, length: str, t: int) -> str:
        return f"snapshot-{t:012d}-mean.safetensors"

    def _profile_entries(self, length: str) -> dict[str, Any]:
        return {"profile": box_profile(self._since, self._images_seen).to_json()}

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
        if self._images_seen > self._start:
            self._stored_since, self._start = self._start, self._images_seen
        return paths

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`; errors as of the base."""
        super().load_state_dict(state)
        self._stored_since = None

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
