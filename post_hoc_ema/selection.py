"""Inputs of a reconstruction: which snapshots to use, which are missing, and which do not belong together."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, TypeVar

from edm2.post_hoc_ema.snapshot import Snapshot, profile_at, refuse_several_runs
from edm2.post_hoc_ema.tails import Profile

AnySnapshot = TypeVar("AnySnapshot", bound=Snapshot)


def select_snapshots(snapshots: Sequence[AnySnapshot], at: int | None = None) -> list[AnySnapshot]:
    """Snapshots that a reconstruction at `at` uses, the newest first; errors as of `reconstruct_tensors`."""
    usable = [s for s in snapshots if s.images_seen > 0 or s.sigma_rel == 0]
    times = sorted({snapshot.images_seen for snapshot in usable})
    if at is not None and times and at not in times:
        nearest = [t for t in times if t < at][-1:] + [t for t in times if t > at][:1]
        raise ValueError(
            f"no snapshot was stored at {at} images seen; the nearest times are {' and '.join(map(str, nearest))}"
        )
    inputs = [snapshot for snapshot in usable if at is None or snapshot.images_seen <= at]
    inputs = sorted(inputs, key=lambda snapshot: (snapshot.images_seen, profile_of(snapshot).width), reverse=True)
    if not inputs:
        raise too_few([], at)
    refuse_several_runs(inputs)
    for a, b in pairwise(inputs):
        if profile_of(a) == profile_of(b):
            kind = f"sigma_rel={a.sigma_rel:g}" if a.sigma_rel else f"one profile ({profile_of(a)})"
            raise ValueError(f"two averages of {a.images_seen} images at {kind}{_paths(a, b)}; keep only one of them")
    return inputs


def profile_of(snapshot: Snapshot) -> Profile:
    """Profile of a snapshot: what it says, else the power function of its EMA length."""
    said = getattr(snapshot, "profile", None)
    if said is None:
        if snapshot.sigma_rel is None:
            raise ValueError(f"a snapshot of {snapshot.images_seen} images has neither a profile nor a sigma_rel")
        return profile_at(snapshot.images_seen, snapshot.sigma_rel)
    return said


def too_few(inputs: Sequence[Snapshot], at: int | None) -> ValueError:
    """Error for a reconstruction from one snapshot or none."""
    until = "" if at is None else f" up to {at} images seen"
    return ValueError(f"reconstruction needs two snapshots or more{until}, found {len(inputs)} (0 images not counted)")


def missing_snapshots(snapshots: Sequence[Snapshot], regular: bool = True) -> list[tuple[int, float]]:
    """Times and EMA lengths that are likely to be missing: there are others of that time or length, regularly spaced.

    Reconstruction works without them, less exactly (`reconstruction_error` tells how much).

    Args:
        snapshots: Those of a run.
        regular: False if times were removed on purpose (`thin`), so that only missing EMA lengths are found.
    """
    present = {(s.images_seen, s.sigma_rel) for s in snapshots if s.images_seen > 0 and s.sigma_rel is not None}
    times = sorted({t for t, _ in present})
    gaps = [b - a for a, b in pairwise(times)]
    if gaps and regular:
        usual = max(gaps, key=gaps.count)
        times = sorted({*times, *(t for a, b in pairwise(times) for t in range(a, b, usual))})
    return sorted({(t, s) for t in times for s in {s for _, s in present}} - present)


def group_of(name: str, groups: Mapping[str, Any]) -> str | None:
    """The first pattern that fits a tensor's name, if any: `*.emb_linear.*`, or `!PATTERN` for all others."""
    return next((p for p in groups if fnmatchcase(name, p.removeprefix("!")) != p.startswith("!")), None)


def refuse_idle_patterns(groups: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise ValueError if a pattern fits no tensor: a slip in it would leave its tensors at the common EMA length."""
    used = {group_of(name, groups) for name in names}
    for pattern in groups:
        if pattern not in used:
            raise ValueError(f"no tensor is left for the pattern {pattern!r}; names are such as {sorted(names)[0]}")


def refuse_different_names(inputs: Sequence[Snapshot]) -> None:
    """Raise ValueError unless all snapshots are of one network."""
    newest, *earlier = inputs
    for snapshot in earlier:
        for name in sorted({*newest.names} ^ {*snapshot.names}):
            raise ValueError(
                f"snapshots are of different networks: only one of {_where(newest, snapshot)} has {name}"
                f"{_paths(newest, snapshot)}; keep one run's snapshots in a folder"
            )


def refuse_different_shapes(
    name: str, shape_a: tuple[int, ...], shape_b: tuple[int, ...], a: Snapshot, b: Snapshot
) -> None:
    """Raise ValueError if a tensor has different shapes in two snapshots."""
    if shape_a != shape_b:
        raise ValueError(
            f"snapshots are of different networks: {name} is {tuple(shape_a)} and {tuple(shape_b)} in {_where(a, b)}"
            f"{_paths(a, b)}; keep one run's snapshots in a folder"
        )


def _where(a: Snapshot, b: Snapshot) -> str:
    """Two snapshots, by the numbers that are in their file names."""
    return " and ".join(
        f"({s.images_seen} images, sigma_rel {s.sigma_rel:g})" if s.sigma_rel else f"({profile_of(s)})" for s in (a, b)
    )


def _paths(a: Snapshot, b: Snapshot) -> str:
    """Phrase with the paths of two snapshots; nothing where they have none."""
    paths = [str(s.path) for s in (a, b) if hasattr(s, "path")]
    return f" ({' and '.join(paths)})" if paths else ""
