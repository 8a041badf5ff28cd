"""Summary of what `--diagnostics` recorded of a run (docs/diagnostics.md), to compare the variants of a study."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edm2.training.run.logging import read_stats


@dataclass(frozen=True)
class DiagnosticsSummary:
    """A few numbers of one run."""

    activation: float
    """Largest activation magnitude of any layer, at the end."""
    activation_growth: float
    """Factor by which it rose in the second half of the run."""
    weight_growth: float
    """Factor by which the mean magnitude of raw weights rose, from the first measurement to the end."""
    update: float
    """Mean over the blocks of the relative update of the last step measured."""
    gradients: Mapping[str, float]
    """Norm of the gradient by bin of noise levels: geometric mean of the measurements in the second half."""


def read_diagnostics_summary(folder: Path) -> DiagnosticsSummary | None:
    """Summarize a finished run; None if it has less than two measurements, or numbers that are not finite.

    Raises:
        ValueError: a record is damaged.
    """
    path = folder / "diagnostics.jsonl"
    records = read_stats(path) if path.exists() else []
    if len(records) < 2:
        return None
    first, last = records[0], records[-1]
    half = min(records, key=lambda record: abs(record["images_seen"] - last["images_seen"] / 2))
    late = [record for record in records if record["images_seen"] >= half["images_seen"]]
    try:
        activations = [max(record["activations"]["max"].values()) for record in (half, last)]
        weights = [statistics.fmean(record["weights"]["raw"]["mean"].values()) for record in (first, last)]
        return DiagnosticsSummary(
            activation=activations[1],
            activation_growth=activations[1] / activations[0],
            weight_growth=weights[1] / weights[0],
            update=statistics.fmean(last["updates"]["relative"].values()),
            gradients=geometric_means(record["noise_levels"]["gradient_norm"] for record in late),
        )
    except (TypeError, ValueError, ZeroDivisionError):  # None (not finite) or zero in place of a number
        return None


def geometric_means(curves: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Geometric mean of curves over the same noise levels, level by level."""
    known = list(curves)
    return {level: math.exp(statistics.fmean(math.log(curve[level]) for curve in known)) for level in known[0]}


def unevenness(curve: Mapping[str, float]) -> float:
    """Ratio of the largest value of a curve to its smallest: 1 if it is flat."""
    return max(curve.values()) / min(curve.values())
