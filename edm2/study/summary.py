"""Summary of a variant: its outcomes over seeds, the influence of the EMA length, and what `--diagnostics` recorded."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm2.study.study import Failure, Outcome, Trial
from edm2.training.config import CHANGEABLE
from edm2.training.run.logging import read_stats

NEAR = 1.1
"""Factor to the lowest distance up to which a distance is near it."""


@dataclass(frozen=True)
class Summary:
    """The finished trials of a variant."""

    label: str
    results: tuple[Outcome | Failure, ...]

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """Results of the trials that were scored."""
        return [result for result in self.results if isinstance(result, Outcome)]

    @cached_property
    def failures(self) -> list[Failure]:
        """Results of the others."""
        return [result for result in self.results if isinstance(result, Failure)]

    def over_seeds(self, quantity: Callable[[Outcome], float | None]) -> list[float]:
        """List a quantity of the outcomes that have it."""
        return [value for value in map(quantity, self.outcomes) if value is not None]

    @property
    def distances(self) -> np.ndarray:
        """Distances by outcome and EMA length, [outcomes, lengths]."""
        return np.array([list(outcome.distances.values()) for outcome in self.outcomes])

    @property
    def curve(self) -> dict[float, float]:
        """Mean distance by sigma_rel."""
        return dict(zip(self.outcomes[0].distances, self.distances.mean(axis=0).tolist(), strict=True))

    @property
    def best(self) -> float:
        """The sigma_rel with the lowest mean distance."""
        return min(self.curve.items(), key=lambda item: item[1])[0]

    @property
    def near(self) -> tuple[float, float]:
        """Ends of the range of sigma_rel around the best one in which mean distances are near the lowest.

        The wider the range, the less the choice matters.
        """
        curve, best = self.curve, self.best
        far = [sigma_rel for sigma_rel, mean in curve.items() if mean > NEAR * curve[best]]
        low, high = max([s for s in far if s < best], default=0), min([s for s in far if s > best], default=math.inf)
        near = [sigma_rel for sigma_rel in curve if low < sigma_rel < high]
        return min(near), max(near)

    @property
    def losses(self) -> np.ndarray:
        """lambda(sigma) (D - y)² by outcome and noise level, [outcomes, levels]."""
        return np.array([outcome.levels.losses for outcome in self.outcomes])

    def losses_over(self, reference: "Summary") -> np.ndarray:
        """Ratios to another variant's losses with the same seed, [outcomes, levels].

        That run has the same held-out images and noise. Where it is missing, its variant's mean losses stand in.
        """
        by_seed = {outcome.seed: outcome.levels.losses for outcome in reference.outcomes}
        means = reference.losses.mean(axis=0)
        return self.losses / np.array([by_seed.get(outcome.seed, means) for outcome in self.outcomes])


def mean_and_deviation(values: Sequence[float], form: str = ".4g") -> str:
    """Write the mean of values, and their standard deviation (n - 1) if there are several; empty if there are none."""
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}" if values else ""


def summarize(labels: Iterable[str], results: Sequence[Outcome | Failure]) -> list[Summary]:
    """Summarize the variants of which any run is finished, in the order of `labels`."""
    grouped = {label: tuple(result for result in results if result.label == label) for label in labels}
    return [Summary(label, own) for label, own in grouped.items() if own]


def best_common_sigma_rel(summaries: Sequence[Summary]) -> float:
    """The sigma_rel with the lowest geometric mean of the variants' mean distances.

    Geometric, so that a variant of large distances does not decide for all.
    """
    curves = [summary.curve for summary in summaries]
    return min(curves[0], key=lambda sigma_rel: sum(math.log(max(curve[sigma_rel], 1e-12)) for curve in curves))


def differing_settings(trials: Sequence[Trial]) -> dict[str, dict[str, object]]:
    """Settings by label in which trials differ, besides seed and folder, and besides those that change no result.

    Settings of the network stand beside the others; its architecture `config` comes first.
    """
    settings = {}
    for trial in trials:
        values = {name: value for name, value in trial.config.to_json().items() if name not in CHANGEABLE | {"seed"}}
        settings[trial.label] = values.pop("network") | values
    names = [name for name in next(iter(settings.values())) if len({str(s[name]) for s in settings.values()}) > 1]
    names.sort(key=lambda name: name != "config")
    return {label: {name: values[name] for name in names} for label, values in settings.items()}


class Diagnostics(NamedTuple):
    """Summary of what `--diagnostics` recorded of a run (docs/diagnostics.md)."""

    numbers: dict[str, float]
    """Numbers by the headings of their columns."""
    gradients: dict[str, float]
    """Norm of the gradient by bin of noise levels: geometric mean of the measurements in the second half."""


def read_diagnostics(folder: Path) -> Diagnostics | None:
    """Summarize a finished run; None if it has less than two measurements, or numbers that are not finite."""
    path = folder / "diagnostics.jsonl"
    records = read_stats(path) if path.exists() else []
    if len(records) < 2:
        return None
    first, last = records[0], records[-1]
    half = min(records, key=lambda record: abs(record["images_seen"] - last["images_seen"] / 2))
    late = [record for record in records if record["images_seen"] >= half["images_seen"]]
    try:
        middle, end = (max(record["activations"]["max"].values()) for record in (half, last))
        raw_weights = [statistics.fmean(record["weights"]["raw"]["mean"].values()) for record in (first, last)]
        numbers = {
            "largest activation": end,
            "its growth in the second half": end / middle,
            "growth of raw weights": raw_weights[1] / raw_weights[0],
            "relative update": statistics.fmean(last["updates"]["relative"].values()),
        }
        return Diagnostics(numbers, geometric_means([record["noise_levels"]["gradient_norm"] for record in late]))
    except (TypeError, ValueError, ZeroDivisionError):  # None (not finite) or zero in place of a number
        return None


def geometric_means(curves: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Geometric mean of curves over the same noise levels, level by level."""
    return {level: math.exp(statistics.fmean(math.log(curve[level]) for curve in curves)) for level in curves[0]}
