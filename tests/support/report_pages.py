"""What tests of `edm2 report` share."""

from collections.abc import Sequence
from pathlib import Path

from edm2.sweep.evaluator import Score
from edm2.sweep.sweep import Point, ScoredPoint, Sweep
from edm2.tools.reports.tables import write_sweep

LENGTHS = (0.05, 0.1, 0.15, 0.2)


def pretend_sweep(
    folder: Path, times: Sequence[int] = (512,), guidances: Sequence[float] = (1.0,), title: str = "FD-pixels"
) -> None:
    """Write a sweep.csv whose best point is EMA length 0.1 at the last time and the first weight, with distance 1."""
    points = [Point(time, s, g) for time in times for s in LENGTHS for g in guidances]
    results = [ScoredPoint(p, (Score(distance(p, times, guidances), None, None),)) for p in points]
    write_sweep(folder / "sweep.csv", Sweep(results, title=title, samples=20))


def distance(point: Point, times: Sequence[int], guidances: Sequence[float]) -> float:
    """A valley around 0.1 that sinks with time and rises with guidance."""
    late, weak = times[-1] / point.images_seen, point.guidance - guidances[0]
    return late + weak + 100 * (point.sigma_rel - 0.1) ** 2
