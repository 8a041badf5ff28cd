"""Known scores of a run's EMA lengths, times and guidance weights."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from edm2.metrics.detectors import title_of
from edm2.sweep.evaluator import Score
from edm2.sweep.sweep import Point, ScoredPoint, Sweep

NEEDED = {"images_seen", "sigma_rel", "guidance", "detector", "distance"}


def scores_in_cache(path: Path) -> Sweep | None:
    """Read the Frechet distances of a sweep.jsonl by the detector, steps and samples that most have; None without any.

    Earlier versions did not write the latter two; sweep.csv, where there is one, is of a single sweep.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and row.keys() >= NEEDED and "metric" not in row:  # of another metric
                rows.append(row)
    if not rows:
        return None
    [(most, _)] = Counter(map(_made_by, rows)).most_common(1)
    results = []
    for row in (row for row in rows if _made_by(row) == most):
        point = Point(row["images_seen"], row["sigma_rel"], row["guidance"], row.get("guide_sigma_rel"))
        results.append(ScoredPoint(point, (Score(row["distance"], row.get("deviation"), row.get("accuracy")),)))
    return Sweep(results, title=title_of(most[0]))


def _made_by(row: dict[str, Any]) -> tuple[Any, ...]:
    """Detector, steps and samples, which scores must share to be compared."""
    return row["detector"], row.get("steps"), row.get("samples")


def best_by_setting(sweep: Sweep | None) -> dict[Point, float]:
    """Lowest distance at each time, EMA length and guidance weight, whatever the guide's EMA length."""
    lowest: dict[Point, float] = {}
    for result in sweep.results if sweep is not None else ():
        point = Point(result.point.images_seen, result.point.sigma_rel, result.point.guidance)
        lowest[point] = min(lowest.get(point, result.distance), result.distance)
    return lowest
