"""Post-hoc averages of any width from snapshots (Karras et al. 2024, arXiv 2312.02696v2, Appendix C, Algorithm 3).

The coefficients depend on times and widths only; the weights of a network are then combined part by part, whatever
their size. Three functions do the same: `reconstruct_files` for many targets of a large network, in bounded memory;
`reconstruct` for state dicts; `reconstruct_tensors` for one tensor at a time.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2.post_hoc_ema.combination import Resources, Sink, WholeTensors, combine, exact_products, make_parts, pour
from edm2.post_hoc_ema.profile import solve_coefficients
from edm2.post_hoc_ema.snapshot import METADATA_KEY, PartialSnapshot, Snapshot
from edm2.post_hoc_ema.tensor_files import TensorLayout, average_dtype, writing_safetensors

MEMORY = 4 << 30
"""Bytes that reconstruction may use unless told otherwise."""

THREADS = max(1, min(8, os.cpu_count() or 1))
"""Threads that reconstruction uses unless told otherwise."""


def reconstruct(
    snapshots: Sequence[Snapshot],
    sigma_rels: Sequence[float],
    at: int | None = None,
    *,
    groups: Mapping[str, float] | None = None,
    threads: int = THREADS,
) -> list[dict[str, Tensor]]:
    """State dicts of the averages of the given widths, in that order.

    Arguments, types and errors as of `reconstruct_tensors`; memory is that of the results and a little.
    """
    problem = Problem(snapshots, sigma_rels, at, groups or {})
    layouts = problem.layouts()
    states = [_StateDict(problem.stored(layouts)) for _ in sigma_rels]
    _fill(problem, layouts, states, MEMORY, threads, lambda done, total: None)
    return [state.tensors for state in states]


def reconstruct_tensors(
    snapshots: Sequence[Snapshot],
    sigma_rels: Sequence[float],
    at: int | None = None,
    *,
    groups: Mapping[str, float] | None = None,
) -> Iterator[tuple[str, list[Tensor]]]:
    """Reconstruct averages one tensor at a time.

    Args:
        snapshots: In any order; those later than `at` are ignored, as are those of 0 images (the initial weights).
        sigma_rels: Relative widths to reconstruct, within (0, 12^-0.5).
        at: Images seen by the reconstructed averages, one of the stored times; None for the latest.
        groups: Widths of their own for some tensors: patterns of names (`*` stands for anything, `!` before a pattern
            for all that it does not fit) to widths; the first that fits counts (the paper's Figure 5b).

    Returns:
        Pairs (name, one tensor per width): averages in float32 (float64 where stored in float64); buffers and integers
        are copied from the last snapshot used. Each tensor of each snapshot is read once.

    Raises:
        ValueError: Fewer than two snapshots, a time that is not stored, an impossible width, two snapshots of equal
            time and width, a pattern that fits no tensor, or snapshots of different networks. Different shapes are
            noticed when a tensor is read.
    """
    return _tensor_by_tensor(Problem(snapshots, sigma_rels, at, groups or {}))


def reconstruct_files(
    snapshots: Sequence[Snapshot],
    sigma_rels: Sequence[float],
    paths: Sequence[str | os.PathLike[str]],
    metadata: Sequence[Mapping[str, Any]],
    at: int | None = None,
    *,
    groups: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
    memory: int = MEMORY,
    threads: int = THREADS,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Reconstruct averages into `.safetensors` files, in one pass over the snapshots and in bounded memory.

    All files grow together under temporary names, and appear when all are complete.

    Args:
        snapshots, sigma_rels, at, groups: As in `reconstruct_tensors`.
        paths: One file per width.
        metadata: What to say in each, as in `write_snapshot`; should have an entry `reconstructed_from`.
        dtype: Storage type of averages; None for the type in which they are computed, float32 at least.
        memory: Bytes to use at most, whatever the network's size. Snapshots that read whole tensors only (no
            `PartialSnapshot`) take that of their largest tensor each besides.
        threads: At most so many.
        progress: Told after each part how many numbers of a target are done, and of how many.

    Raises:
        ValueError: As `reconstruct_tensors` does, or too little memory; nothing is written then.
        OSError: A file cannot be read or written, or there is too little space for all; nothing is left then.
    """
    problem = Problem(snapshots, sigma_rels, at, groups or {})
    layouts = problem.layouts()
    stored = problem.stored(layouts, dtype)
    problem.resources(layouts.values(), memory, threads)
    _refuse_full_disk(paths, sum(layout.nbytes for layout in stored.values()))
    with ExitStack() as stack:
        sinks = [
            stack.enter_context(writing_safetensors(path, stored, {METADATA_KEY: json.dumps(dict(said))}))
            for path, said in zip(paths, metadata, strict=True)
        ]
        _fill(problem, layouts, sinks, memory, threads, progress)


def select_snapshots(snapshots: Sequence[Snapshot], at: int | None = None) -> list[Snapshot]:
    """The snapshots that a reconstruction at `at` uses, the latest first; errors as of `reconstruct_tensors`."""
    usable = [snapshot for snapshot in snapshots if snapshot.images_seen > 0]
    times = sorted({snapshot.images_seen for snapshot in usable})
    if at is not None and times and at not in times:
        raise ValueError(f"no snapshot was stored at {at} images seen; the nearest times are {_nearest(times, at)}")
    inputs = [snapshot for snapshot in usable if at is None or snapshot.images_seen <= at]
    if len(inputs) < 2:
        until = "" if at is None else f" up to {at} images seen"
        raise ValueError(
            f"reconstruction needs two snapshots or more{until}, found {len(inputs)} (0 images not counted)"
        )
    _refuse_duplicates(inputs)
    return sorted(inputs, key=lambda snapshot: (snapshot.images_seen, snapshot.sigma_rel), reverse=True)


def missing_snapshots(snapshots: Sequence[Snapshot], regular: bool = True) -> list[tuple[int, float]]:
    """Times and widths that are likely to be missing: others of that time or width are there at regular intervals.

    Args:
        snapshots: Those of a run.
        regular: Whether there are no regular intervals because some times were removed on purpose (`thin`): False
            tells of widths only.

    Reconstruction does without them, less exactly (`reconstruction_error` tells how much).
    """
    there = {(snapshot.images_seen, snapshot.sigma_rel) for snapshot in snapshots if snapshot.images_seen > 0}
    times = sorted({t for t, _ in there})
    gaps = [b - a for a, b in pairwise(times)]
    if gaps and regular:
        usual = max(gaps, key=gaps.count)
        times = sorted({*times, *(t for a, b in pairwise(times) for t in range(a, b, usual))})
    return sorted({(t, s) for t in times for s in {s for _, s in there}} - there)


@dataclass(frozen=True)
class Problem:
    """What to combine with which coefficients; refuses what cannot be done, before anything is read."""

    snapshots: Sequence[Snapshot]
    sigma_rels: Sequence[float]
    at: int | None = None
    groups: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _refuse_different_names(self.inputs)
        _refuse_idle_patterns(self.groups, self.inputs[0].names)
        self._solutions  # noqa: B018 - refuses impossible widths

    @cached_property
    def inputs(self) -> list[PartialSnapshot]:
        """The snapshots to use, the latest first."""
        selected = select_snapshots(self.snapshots, self.at)
        return [s if isinstance(s, PartialSnapshot) else WholeTensors(s) for s in selected]

    @cached_property
    def copied(self) -> frozenset[str]:
        """Names of the tensors that are said to be copies, not averages."""
        return frozenset(self.inputs[0].buffers)

    def layouts(self) -> dict[str, TensorLayout]:
        """All tensors of the network.

        Raises:
            ValueError: Snapshots that read parts have a tensor in different shapes.
        """
        latest, *others = self.inputs
        layouts = {name: latest.layout(name) for name in latest.names}
        for other in others:
            if not isinstance(other, WholeTensors):  # of which shapes would cost a pass over the file
                for name, layout in layouts.items():
                    _refuse_different_shapes(name, layout, other.layout(name), latest, other)
        return layouts

    def stored(self, layouts: Mapping[str, TensorLayout], dtype: torch.dtype | None = None) -> dict[str, TensorLayout]:
        """The results' tensors; `dtype` for real averages, None for the types in which they are computed."""
        return {
            name: _as_average(layout, dtype) if self.is_average(name, layout) else layout
            for name, layout in layouts.items()
        }

    @property
    def reads_parts(self) -> bool:
        """Whether all snapshots can be read in parts."""
        return not any(isinstance(snapshot, WholeTensors) for snapshot in self.inputs)

    def resources(self, layouts: Iterable[TensorLayout], memory: int, threads: int) -> Resources:
        """Threads and sizes for combining the given tensors."""
        computed = filter(None, (average_dtype(layout.dtype) for layout in layouts))
        itemsize = max((dtype.itemsize for dtype in computed), default=4)
        return Resources.within(memory, threads, len(self.inputs), len(self.sigma_rels), itemsize)

    def is_average(self, name: str, layout: TensorLayout) -> bool:
        """Whether to combine a tensor; others are copied."""
        return name not in self.copied and average_dtype(layout.dtype) is not None

    def coefficients(self, name: str) -> Tensor:
        """[targets, inputs] in float64 for a tensor; the same object for all tensors of a group."""
        return self._solutions[_group_of(name, self.groups)]

    @cached_property
    def _solutions(self) -> dict[str | None, Tensor]:
        """Coefficients by pattern; None for the tensors that no pattern fits."""
        lengths = {pattern: [length] * len(self.sigma_rels) for pattern, length in self.groups.items()}
        return {pattern: self._solve(widths) for pattern, widths in ({None: self.sigma_rels} | lengths).items()}

    def _solve(self, sigma_rels: Sequence[float]) -> Tensor:
        x = solve_coefficients(
            in_t=[snapshot.images_seen for snapshot in self.inputs],
            in_sigma_rel=[snapshot.sigma_rel for snapshot in self.inputs],
            out_t=self.inputs[0].images_seen,
            out_sigma_rel=sigma_rels,
        )
        return torch.from_numpy(x).T.contiguous()


class _StateDict:
    """A sink in memory."""

    def __init__(self, layouts: Mapping[str, TensorLayout]) -> None:
        self.tensors = {name: torch.empty(layout.shape, dtype=layout.dtype) for name, layout in layouts.items()}

    def write(self, name: str, start: int, numbers: Tensor) -> None:
        self.tensors[name].view(-1)[start : start + len(numbers)] = numbers


def _fill(
    problem: Problem,
    layouts: Mapping[str, TensorLayout],
    sinks: Sequence[Sink],
    memory: int,
    threads: int,
    progress: Callable[[int, int], object],
) -> None:
    """Hand every number of the targets to their sinks."""
    averages = {name: layout for name, layout in layouts.items() if problem.is_average(name, layout)}
    resources = problem.resources(averages.values(), memory, threads)
    if problem.reads_parts:
        _copy(problem.inputs[0], layouts.keys() - averages.keys(), sinks)
        pour(problem.inputs, make_parts(averages, problem.coefficients, resources.part), sinks, resources, progress)
    else:
        _write_whole_tensors(_tensor_by_tensor(problem, memory), sinks)


def _copy(latest: Snapshot, names: Iterable[str], sinks: Sequence[Sink]) -> None:
    """Buffers and integers, which are no averages."""
    _write_whole_tensors(((name, [latest.read(name)] * len(sinks)) for name in names), sinks)


def _write_whole_tensors(tensors: Iterable[tuple[str, list[Tensor]]], sinks: Sequence[Sink]) -> None:
    """Names and one tensor per sink."""
    for name, values in tensors:
        for sink, tensor in zip(sinks, values, strict=True):
            sink.write(name, 0, tensor.reshape(-1))


def _tensor_by_tensor(problem: Problem, memory: int = MEMORY) -> Iterator[tuple[str, list[Tensor]]]:
    """Every tensor of the network, one per target."""
    latest, *others = problem.inputs
    for name in latest.names:
        layout = latest.layout(name)
        for other in others:
            _refuse_different_shapes(name, layout, other.layout(name), latest, other)
        if problem.is_average(name, layout):
            yield name, _combine_tensor(problem, name, layout, memory)
        else:
            yield name, [latest.read(name).clone() for _ in problem.sigma_rels]


def _combine_tensor(problem: Problem, name: str, layout: TensorLayout, memory: int) -> list[Tensor]:
    """One tensor of every target."""
    wanted = _as_average(layout, None)
    results = [torch.empty(wanted.numel, dtype=wanted.dtype) for _ in problem.sigma_rels]
    resources = problem.resources([layout], memory, threads=1)
    workspace = resources.new_workspace()
    with exact_products():
        for part in make_parts({name: layout}, problem.coefficients, resources.part):
            [piece] = part.pieces
            for result, row in zip(results, combine(problem.inputs, part, workspace), strict=True):
                result[piece.start : piece.stop] = row
    return [result.view(wanted.shape) for result in results]


def _as_average(layout: TensorLayout, dtype: torch.dtype | None) -> TensorLayout:
    """An average in `dtype`; None, and complex numbers: in the type in which it is computed."""
    computed = average_dtype(layout.dtype)
    return TensorLayout(dtype if dtype and computed.is_floating_point else computed, layout.shape)


def _group_of(name: str, groups: Mapping[str, float]) -> str | None:
    """The first pattern that fits a tensor's name, if any."""
    return next((pattern for pattern in groups if _fits(name, pattern)), None)


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern such as `*.emb_linear.*`, or `!PATTERN` for all others, fits a name."""
    return not fnmatchcase(name, pattern[1:]) if pattern.startswith("!") else fnmatchcase(name, pattern)


def _nearest(times: Sequence[int], at: int) -> str:
    """The stored times on both sides of `at`, as text."""
    before, after = [t for t in times if t < at], [t for t in times if t > at]
    return " and ".join(str(t) for t in before[-1:] + after[:1])


def _refuse_duplicates(inputs: Sequence[Snapshot]) -> None:
    """Two averages of the same time and width leave open which one to take."""
    known: dict[tuple[int, float], Snapshot] = {}
    for snapshot in inputs:
        place = (snapshot.images_seen, snapshot.sigma_rel)
        if other := known.get(place):
            raise ValueError(
                f"two averages of {place[0]} images at sigma_rel={place[1]:g}"
                f"{_paths(other, snapshot)}; keep only one of them"
            )
        known[place] = snapshot


def _refuse_different_names(inputs: Sequence[Snapshot]) -> None:
    """All snapshots must be of one network."""
    expected = set(inputs[0].names)
    for snapshot in inputs[1:]:
        for name in sorted(expected.symmetric_difference(snapshot.names)):
            raise ValueError(
                f"snapshots are of different networks: only one of {_where(inputs[0], snapshot)} has {name}"
                f"{_paths(inputs[0], snapshot)}; keep one run's snapshots in a folder"
            )


def _refuse_different_shapes(name: str, a: TensorLayout, b: TensorLayout, first: Snapshot, second: Snapshot) -> None:
    """The same tensor in two snapshots."""
    if a.shape != b.shape:
        raise ValueError(
            f"snapshots are of different networks: {name} is {a.shape} and {b.shape} in {_where(first, second)}"
            f"{_paths(first, second)}; keep one run's snapshots in a folder"
        )


def _refuse_full_disk(paths: Sequence[str | os.PathLike[str]], nbytes: int) -> None:
    """Find out now, not after minutes."""
    for folder in {Path(path).absolute().parent for path in paths}:
        there = next(place for place in (folder, *folder.parents) if place.is_dir())
        needed = nbytes * sum(Path(path).absolute().parent == folder for path in paths)
        if (free := shutil.disk_usage(there).free) < needed:
            message = f"{needed / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB free; reconstruct fewer at a time"
            raise OSError(errno.ENOSPC, message, str(folder))


def _refuse_idle_patterns(groups: Mapping[str, float], names: Iterable[str]) -> None:
    """A pattern with a slip in it would leave its tensors at the length of all others."""
    used = {_group_of(name, groups) for name in names}
    for pattern in groups:
        if pattern not in used:
            raise ValueError(f"no tensor is left for the pattern {pattern!r}; names are such as {sorted(names)[0]}")


def _where(a: Snapshot, b: Snapshot) -> str:
    """Two snapshots, by the numbers that are in their file names."""
    return " and ".join(f"({s.images_seen} images, sigma_rel {s.sigma_rel:g})" for s in (a, b))


def _paths(a: Snapshot, b: Snapshot) -> str:
    """Their files, where they have any."""
    paths = [str(s.path) for s in (a, b) if hasattr(s, "path")]
    return f" ({' and '.join(paths)})" if paths else ""
