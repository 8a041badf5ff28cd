"""What the diagnostics of a run come to: a few numbers that can be compared between the variants of a study."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edm2.training.run.logging import Record, read_stats


@dataclass(frozen=True)
class DiagnosticsSummary:
    """Of one run, by what `--diagnostics` recorded (docs/diagnostics.md)."""

    activation: float
    """The largest activation magnitude of any layer, at the end."""
    activation_growth: float
    """Factor by which that rose in the second half of the run."""
    weight_growth: float
    """Factor by which the mean magnitude of raw weights rose, from the first measurement to the end."""
    update: float
    """Mean over the blocks of the relative update of the last step measured."""
    gradients: Mapping[str, float]
    """Norm of the gradient by bin of noise levels: geometric mean of the measurements in the second half."""


def read_diagnostics_summary(folder: Path) -> DiagnosticsSummary | None:
    """Of a finished run; None if it recorded less than two measurements, or numbers that are not finite.

    Raises:
        ValueError: a record is damaged.
    """
    path = folder / "diagnostics.jsonl"
    records = read_stats(path) if path.exists() else []
    if len(records) < 2:
        return None
    try:
        return _summary_of(records)
    except (TypeError, ValueError, ZeroDivisionError):  # None or zero stands where a number should
        return None


def _summary_of(records: Sequence[Record]) -> DiagnosticsSummary:
    first, last = records[0], records[-1]
    half = min(records, key=lambda record: abs(record["images_seen"] - last["images_seen"] / 2))
    late = [record for record in records if record["images_seen"] >= half["images_seen"]]
    return DiagnosticsSummary(
        activation=_largest_activation(last),
        activation_growth=_largest_activation(last) / _largest_activation(half),
        weight_growth=_mean_weight(last) / _mean_weight(first),
        update=statistics.fmean(last["updates"]["relative"].values()),
        gradients=geometric_means(record["noise_levels"]["gradient_norm"] for record in late),
    )


def _largest_activation(record: Record) -> float:
    return max(record["activations"]["max"].values())


def _mean_weight(record: Record) -> float:
    return statistics.fmean(record["weights"]["raw"]["mean"].values())


def geometric_means(curves: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of curves over the same noise levels, level by level."""
    known = list(curves)
    return {level: math.exp(statistics.fmean(math.log(curve[level]) for curve in known)) for level in known[0]}


def unevenness(curve: Mapping[str, float]) -> float:
    """How many times the largest value of a curve is its smallest: 1 if it is flat."""
    return max(curve.values()) / min(curve.values())
