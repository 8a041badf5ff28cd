"""Averages of any EMA length, reconstructed from snapshots (Karras et al. 2024, arXiv 2312.02696v2, Appendix C).

Every tensor of a reconstructed network is one linear combination of that tensor in the snapshots,

    θ̂ = Σ_i c_i θ̂_i

whose coefficients depend on the profiles only: those of the snapshots and the one that is wanted. `METHODS` has two
ways to solve for them. `Reconstruction.tensors` is the sum as it stands here. The same sum over a large network, many
targets at once, is `streaming`.
"""

import errno
import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from edm2.post_hoc_ema.planning import rounding_error
from edm2.post_hoc_ema.profile import FloatArray, ReconstructionError, solve_coefficients
from edm2.post_hoc_ema.selection import (
    group_of,
    profile_of,
    refuse_different_names,
    refuse_different_shapes,
    refuse_idle_patterns,
    select_snapshots,
    too_few,
)
from edm2.post_hoc_ema.snapshot import METADATA_KEY, PartialSnapshot, Snapshot
from edm2.post_hoc_ema.streaming import MEMORY, THREADS, Block, Resources, Writer, make_blocks, stream_combine
from edm2.post_hoc_ema.tails import (
    PowerProfile,
    Profile,
    power_profile,
    tail_coefficients,
    tail_distance,
    tail_error,
    tail_forecast,
)
from edm2.post_hoc_ema.tensor_files import TensorLayout, average_dtype, writing_safetensors

SAMPLE = 1 << 20
"""Numbers of each tensor from which the movement of weights is estimated."""

Target: TypeAlias = float | Profile
"""An EMA length, or the profile of the wanted average."""


@dataclass(frozen=True)
class WeightStatistics:
    """Movement and rounding of a network's weights, means over all numbers that are averaged.

    Attributes:
        drift: D, variance of the weights' movement per image, if they moved like a random walk.
        mean_square: θ² of the newest snapshot.
        rounding: v, variance of the rounding of stored weights.
    """

    drift: float
    mean_square: float
    rounding: float

    @property
    def noise(self) -> float:
        """v / D, which `tail_coefficients` weighs against the error of the profile; 0 where nothing moved."""
        ratio = self.rounding / self.drift if self.drift > 0 else 0.0
        return ratio if math.isfinite(ratio) else 0.0

    def relative_error(self, tail_errors: FloatArray, noise_gain: FloatArray) -> FloatArray:
        """Expected relative L2 error of reconstructed weights: of their profile, and of rounding."""
        return np.sqrt((self.drift * tail_errors**2 + self.rounding * noise_gain**2) / (self.mean_square or 1.0))

    @staticmethod
    def measured(newest: Snapshot, oldest: Snapshot) -> "WeightStatistics":
        """Read up to `SAMPLE` numbers of each tensor in two snapshots."""
        buffers = frozenset(getattr(newest, "buffers", ()))
        square = movement = rounding = count = 0.0
        for name in newest.names:
            new = _first_numbers(newest, name)
            if name in buffers or not new.numel() or (dtype := average_dtype(new.dtype)) is None:
                continue
            eps = rounding_error(new.dtype)
            new, old = new.to(dtype), _first_numbers(oldest, name).to(dtype)
            if new.shape != old.shape:
                refuse_different_shapes(name, tuple(new.shape), tuple(old.shape), newest, oldest)
            squares = new.abs().square().sum(dtype=torch.float64).item()
            square, rounding, count = square + squares, rounding + eps**2 * squares, count + new.numel()
            movement += (new - old).abs().square().sum(dtype=torch.float64).item()
        walked = tail_distance(profile_of(newest), profile_of(oldest)) ** 2
        count = count or 1.0
        return WeightStatistics(movement / count / walked if walked else 0.0, square / count, rounding / count)


def _first_numbers(snapshot: Snapshot, name: str) -> Tensor:
    """Up to `SAMPLE` numbers of a tensor."""
    if isinstance(snapshot, PartialSnapshot):
        return snapshot.read_part(name, 0, min(SAMPLE, snapshot.layout(name).numel))
    return snapshot.read(name).flatten()[:SAMPLE]


def _by_tails(inputs: Sequence[Profile], targets: Sequence[Profile], noise: float) -> FloatArray:
    return tail_coefficients(inputs, targets, noise)


def _by_density(inputs: Sequence[Profile], targets: Sequence[Profile], noise: float) -> FloatArray:
    for profile in (*inputs, *targets):
        if not isinstance(profile, PowerProfile) or profile.sigma_rel is None:
            raise ValueError(f"method='density' knows power functions from time 0 only, not a {profile}; use 'tails'")
    (in_t, in_s), (out_t, out_s) = ([[p.t for p in ps], [p.sigma_rel for p in ps]] for ps in (inputs, targets))
    return solve_coefficients(in_t, in_s, out_t, out_s)  # type: ignore[arg-type]  # none of the lengths is None


METHODS: dict[str, Callable[[Sequence[Profile], Sequence[Profile], float], FloatArray]] = {
    "tails": _by_tails,
    "density": _by_density,
}
"""Ways to solve for coefficients: smallest expected error of weights, rounding included; the paper's Algorithm 3."""


class Reconstruction:
    """Wanted averages of one network; refuses what cannot be combined before any tensor is read.

    Arguments and errors as of `reconstruct_tensors`.
    """

    def __init__(
        self,
        snapshots: Sequence[Snapshot],
        sigma_rels: Sequence[Target],
        at: int | None = None,
        groups: Mapping[str, Target] | None = None,
        method: str = "tails",
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method={method!r} must be one of {', '.join(METHODS)}")
        self._method = METHODS[method]
        self.inputs = select_snapshots(snapshots, at)  # the newest first, which is of the time `at`
        self.newest = self.inputs[0]
        partial = [snapshot for snapshot in self.inputs if isinstance(snapshot, PartialSnapshot)]
        self._partial = partial if len(partial) == len(self.inputs) else None
        self.groups = groups or {}
        self.targets = len(sigma_rels)
        if not self.targets:
            raise ValueError("there is no EMA length to reconstruct; give one or more")
        refuse_different_names(self.inputs)
        refuse_idle_patterns(self.groups, self.newest.names)
        self._buffers = frozenset(getattr(self.newest, "buffers", ()))  # readers from elsewhere need not have any
        self.profiles = [profile_of(snapshot) for snapshot in self.inputs]
        self.wanted: dict[str | None, list[Profile]] = {None: [self._profile(target) for target in sigma_rels]}
        self.wanted |= {pattern: [self._profile(target)] * self.targets for pattern, target in self.groups.items()}
        if len(self.inputs) < 2 and not all(p in self.profiles for ps in self.wanted.values() for p in ps):
            raise too_few(self.inputs, at)

    def _profile(self, target: Target) -> Profile:
        """Profile of a target; that of a snapshot of the same EMA length to the bit."""
        if isinstance(target, Profile):
            return target
        t = self.newest.images_seen
        stored = (p for p in self.profiles if p.t == t and p.sigma_rel and abs(p.sigma_rel - target) < 1e-9)
        return next(stored, None) or power_profile(t, target)

    @cached_property
    def statistics(self) -> WeightStatistics:
        """Movement and rounding of the weights, measured in the newest and the oldest snapshot."""
        return WeightStatistics.measured(self.newest, self.inputs[-1])

    @cached_property
    def coefficients(self) -> dict[str | None, FloatArray]:
        """Coefficients c [inputs, targets] of tensors that fit no pattern (None), and of each pattern."""
        noise = self.statistics.noise
        return {pattern: self._method(self.profiles, wanted, noise) for pattern, wanted in self.wanted.items()}

    def forecast(self) -> tuple[ReconstructionError, FloatArray]:
        """Errors of the targets' profiles, and of their weights: the expected relative L2 error [targets]."""
        wanted, c = self.wanted[None], self.coefficients[None]
        error = tail_forecast(self.profiles, wanted, c)
        return error, self.statistics.relative_error(tail_error(self.profiles, wanted, c), error.noise_gain)

    def tensors(self) -> Iterator[tuple[str, list[Tensor]]]:
        """Names and tensors, one per target: θ̂ = Σ_i c_i θ̂_i for averages, copies of the newest for all others."""
        for name in self.newest.names:
            theta = self.newest.read(name)
            dtype = self._dtype(name, theta.dtype)
            if dtype is None:
                yield name, [theta.clone() for _ in range(self.targets)]
                continue
            sums = [torch.zeros(theta.shape, dtype=dtype) for _ in range(self.targets)]
            for snapshot, c_i in zip(self.inputs, self.coefficients[group_of(name, self.groups)].tolist(), strict=True):
                theta_i = theta if snapshot is self.newest else snapshot.read(name)
                refuse_different_shapes(name, theta.shape, theta_i.shape, self.newest, snapshot)
                theta_i = theta_i.to(dtype)  # stored in float16, say; the sum needs float32
                for total, c in zip(sums, c_i, strict=True):  # one per target
                    total.add_(theta_i, alpha=c)
            yield name, sums

    def _dtype(self, name: str, dtype: torch.dtype) -> torch.dtype | None:
        """Type in which a tensor is combined; None for buffers and integers, which are copied."""
        return None if name in self._buffers else average_dtype(dtype)

    # ------------------------------------------------------------------------------------------------------------------
    # The same in blocks: `streaming`

    def layouts(self) -> dict[str, TensorLayout]:
        """Layouts of all tensors, as the newest snapshot stores them.

        Raises:
            ValueError: Snapshots that can be read in parts have a tensor in different shapes.
        """
        if self._partial is None:  # the shapes in older snapshots would cost a pass over their files
            tensors = ((name, self.newest.read(name)) for name in self.newest.names)
            return {name: TensorLayout(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors}
        newest, *others = self._partial
        layouts = {name: newest.layout(name) for name in newest.names}
        for snapshot in others:
            for name, layout in layouts.items():
                refuse_different_shapes(name, layout.shape, snapshot.layout(name).shape, self.newest, snapshot)
        return layouts

    def results(self, layouts: Mapping[str, TensorLayout], dtype: torch.dtype | None = None) -> dict[str, TensorLayout]:
        """Layouts of a target's tensors; `dtype` for real averages, None for the types in which they are computed."""
        results = dict(layouts)
        for name, layout in layouts.items():
            if computed := self._dtype(name, layout.dtype):
                results[name] = TensorLayout(dtype if dtype and computed.is_floating_point else computed, layout.shape)
        return results

    def resources(self, layouts: Mapping[str, TensorLayout], memory: int, threads: int) -> Resources:
        """Threads and block size for these tensors; ValueError if `memory` is too small."""
        dtypes = (self._dtype(name, layout.dtype) for name, layout in layouts.items())
        itemsize = max((dtype.itemsize for dtype in dtypes if dtype), default=4)
        return Resources.within(memory, threads, len(self.inputs), self.targets, itemsize)

    def write(
        self,
        layouts: Mapping[str, TensorLayout],
        writers: Sequence[Writer],
        resources: Resources,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> None:
        """Hand every number of the targets to their writers."""
        if self._partial is None:
            for name, tensors in self.tensors():
                for writer, tensor in zip(writers, tensors, strict=True):
                    writer.write(name, 0, tensor.reshape(-1))
            return
        for name, layout in layouts.items():
            if not self._dtype(name, layout.dtype):
                numbers = self.newest.read(name).reshape(-1)
                for writer in writers:
                    writer.write(name, 0, numbers)
        stream_combine(self._partial, self._blocks(layouts, resources.block), writers, resources, progress)

    def _blocks(self, layouts: Mapping[str, TensorLayout], size: int) -> Iterator[Block]:
        """Divide the averages into blocks whose tensors have the coefficients and the type in common."""
        numels: dict[tuple[str | None, torch.dtype], dict[str, int]] = defaultdict(dict)
        for name, layout in layouts.items():
            if dtype := self._dtype(name, layout.dtype):
                numels[group_of(name, self.groups), dtype][name] = layout.numel
        for (group, dtype), numel_of in numels.items():
            coefficients = torch.from_numpy(self.coefficients[group].T).contiguous()  # [targets, inputs]
            yield from make_blocks(numel_of, coefficients.to(dtype), size)


def reconstruct_tensors(
    snapshots: Sequence[Snapshot],
    sigma_rels: Sequence[Target],
    at: int | None = None,
    *,
    groups: Mapping[str, Target] | None = None,
    method: str = "tails",
) -> Iterator[tuple[str, list[Tensor]]]:
    """Reconstruct averages one tensor at a time.

    Args:
        snapshots: In any order; those later than `at` are ignored, as are those of 0 images (the initial weights).
        sigma_rels: EMA lengths to reconstruct, within (0, 12^-0.5), or profiles.
        at: Images seen by the reconstructed averages, one of the stored times; None for the newest.
        groups: Targets of their own for some tensors: patterns of names (`*` stands for anything, `!` before a
            pattern for all that it does not fit) to targets; the first that fits counts (the paper's Figure 5b).
        method: "tails" for the smallest expected error of the weights, rounding included, or "density" for the paper's
            Algorithm 3 (`METHODS`).

    Returns:
        Pairs (name, one tensor per target): averages in float32 (float64 where stored in float64); buffers and
        integers are copied from the newest snapshot used. Each tensor of each snapshot is read once, of the newest and
        the oldest a part before.

    Raises:
        ValueError: Fewer than two snapshots (one will do for its own profile), a time that is not stored, an impossible
            EMA length, two snapshots of one profile, a pattern that fits no tensor, or snapshots of different networks.
            Different shapes are noticed when a tensor is read.
    """
    return Reconstruction(snapshots, sigma_rels, at, groups, method).tensors()


def reconstruct(
    snapshots: Sequence[Snapshot],
    sigma_rels: Sequence[Target],
    at: int | None = None,
    *,
    groups: Mapping[str, Target] | None = None,
    method: str = "tails",
    threads: int = THREADS,
) -> list[dict[str, Tensor]]:
    """Reconstruct state dicts, one per target, in that order.

    Arguments, types and errors as of `reconstruct_tensors`; memory is that of the results and a little. It is the same
    sum; snapshots that can be read in parts, as our files can, are combined in blocks by several threads, and meanwhile
    torch computes all products of this process in one thread each (see `streaming.stream_combine`).
    """
    reconstruction = Reconstruction(snapshots, sigma_rels, at, groups, method)
    layouts = reconstruction.layouts()
    states = [_StateDictWriter(reconstruction.results(layouts)) for _ in sigma_rels]
    reconstruction.write(layouts, states, reconstruction.resources(layouts, MEMORY, threads))
    return [state.tensors for state in states]


def reconstruct_files(
    snapshots: Sequence[Snapshot],
    sigma_rels: Sequence[Target],
    paths: Sequence[str | os.PathLike[str]],
    metadata: Sequence[Mapping[str, Any]],
    at: int | None = None,
    *,
    groups: Mapping[str, Target] | None = None,
    method: str = "tails",
    dtype: torch.dtype | None = None,
    memory: int = MEMORY,
    threads: int = THREADS,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Reconstruct averages into `.safetensors` files, in one pass over the snapshots and in bounded memory.

    All files grow together under temporary names, and appear when all are complete.

    Args:
        snapshots, sigma_rels, at, groups, method: As in `reconstruct_tensors`.
        paths: One file per target.
        metadata: What to say in each, as in `write_snapshot`; should have an entry `reconstructed_from`.
        dtype: Storage type of averages; None for the type in which they are computed, float32 at least.
        memory: Bytes to use at most, whatever the network's size. If a snapshot can only be read by whole tensors (no
            `PartialSnapshot`), the largest tensor of each target besides.
        threads: At most so many.
        progress: Called after each block with the numbers of a target that are done, and their total.

    Raises:
        ValueError: As `reconstruct_tensors` does, or too little memory; nothing is written then.
        OSError: A file cannot be read or written, or there is too little space for all; nothing is left then.
    """
    reconstruction = Reconstruction(snapshots, sigma_rels, at, groups, method)
    layouts = reconstruction.layouts()
    results = reconstruction.results(layouts, dtype)
    resources = reconstruction.resources(layouts, memory, threads)
    _refuse_full_disk(paths, sum(layout.nbytes for layout in results.values()))
    headers = [{"format": "pt", METADATA_KEY: json.dumps(dict(entries))} for entries in metadata]  # transformers 4
    with ExitStack() as stack:
        writers = [
            stack.enter_context(writing_safetensors(path, results, header))
            for path, header in zip(paths, headers, strict=True)
        ]
        reconstruction.write(layouts, writers, resources, progress)


class _StateDictWriter:
    """A writer into memory."""

    def __init__(self, layouts: Mapping[str, TensorLayout]) -> None:
        self.tensors = {name: torch.empty(layout.shape, dtype=layout.dtype) for name, layout in layouts.items()}

    def write(self, name: str, start: int, numbers: Tensor) -> None:
        self.tensors[name].view(-1)[start : start + len(numbers)] = numbers


def _refuse_full_disk(paths: Sequence[str | os.PathLike[str]], nbytes: int) -> None:
    """Raise OSError now, not after minutes, if files of so many bytes do not fit."""
    folders = [Path(path).absolute().parent for path in paths]
    for folder in set(folders):
        existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        needed = nbytes * folders.count(folder)
        if (free := shutil.disk_usage(existing).free) < needed:
            message = f"{needed / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB free; reconstruct fewer at a time"
            raise OSError(errno.ENOSPC, message, str(folder))
