"""What a study says of each variant: means and spreads over seeds, and how much the EMA length matters."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edm2.study.study import Failure, Outcome, Trial
from edm2.training.config import CHANGEABLE

NEAR = 0.1
"""A distance so much above the lowest is near it."""


@dataclass(frozen=True)
class Spread:
    """A quantity over seeds."""

    mean: float
    deviation: float | None
    """Standard deviation (n - 1); None of a single seed."""
    lowest: float
    highest: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the values that are there; None if there are none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    deviation = statistics.stdev(there) if len(there) > 1 else None
    return Spread(statistics.fmean(there), deviation, min(there), max(there))


@dataclass(frozen=True)
class Summary:
    """One variant: the trials that are finished."""

    label: str
    outcomes: tuple[Outcome, ...]
    failures: tuple[Failure, ...] = ()

    def over_seeds(self, quantity: Callable[[Outcome], float | None]) -> Spread | None:
        """Of something that outcomes have; None if none of them has it."""
        return spread(quantity(outcome) for outcome in self.outcomes)

    @property
    def curve(self) -> dict[float, Spread]:
        """Distance by EMA length."""
        lengths = self.outcomes[0].distances if self.outcomes else ()
        return {length: self.at(length) for length in lengths}

    def at(self, sigma_rel: float) -> Spread | None:
        """Distance at one EMA length."""
        return self.over_seeds(lambda outcome: outcome.distances[sigma_rel])

    @property
    def best(self) -> float:
        """The length at which the mean distance is lowest."""
        curve = self.curve
        return min(curve, key=lambda length: curve[length].mean)

    @property
    def near(self) -> tuple[float, float]:
        """The shortest and the longest length around the best one whose mean distances are near the lowest.

        Of the lengths that were scored: the wider the range, the less the choice matters.
        """
        curve = {length: value.mean for length, value in sorted(self.curve.items())}
        lengths, bound = list(curve), (1 + NEAR) * curve[self.best]
        first = last = lengths.index(self.best)
        while first > 0 and curve[lengths[first - 1]] <= bound:
            first -= 1
        while last < len(lengths) - 1 and curve[lengths[last + 1]] <= bound:
            last += 1
        return lengths[first], lengths[last]

    @property
    def losses(self) -> dict[float, Spread]:
        """lambda(sigma) (D - y)² by noise level."""
        return _by_level(self.outcomes, [outcome.levels.losses for outcome in self.outcomes])

    def losses_over(self, reference: "Summary") -> dict[float, Spread]:
        """The same as ratios to another variant's loss with the same seed, which has the same held-out images and
        noise, or to its mean where that run is missing."""
        by_seed = {outcome.seed: outcome.levels.losses for outcome in reference.outcomes}
        means = [value.mean for value in reference.losses.values()]
        pairs = [(outcome.levels.losses, by_seed.get(outcome.seed, means)) for outcome in self.outcomes]
        return _by_level(self.outcomes, [[a / b for a, b in zip(*pair, strict=True)] for pair in pairs])


def _by_level(outcomes: Sequence[Outcome], values: Sequence[Sequence[float]]) -> dict[float, Spread]:
    """Values of several outcomes, over these, by noise level."""
    return dict(zip(outcomes[0].levels.sigmas, map(spread, zip(*values, strict=True)), strict=True))


def summarize(labels: Sequence[str], results: Sequence[Outcome | Failure]) -> list[Summary]:
    """One for each variant of which anything is known, in the order of `labels`."""
    summaries = [
        Summary(
            label,
            tuple(r for r in results if r.label == label and isinstance(r, Outcome)),
            tuple(r for r in results if r.label == label and isinstance(r, Failure)),
        )
        for label in labels
    ]
    return [summary for summary in summaries if summary.outcomes or summary.failures]


def best_common_length(summaries: Sequence[Summary]) -> float:
    """The length that does best for all variants together: lowest geometric mean of their mean distances.

    Geometric, so that a variant of large distances does not decide for all.
    """
    curves = [summary.curve for summary in summaries if summary.outcomes]
    return min(curves[0], key=lambda length: sum(math.log(max(curve[length].mean, 1e-12)) for curve in curves))


def differing_settings(trials: Sequence[Trial]) -> dict[str, dict[str, object]]:
    """By label: the settings in which trials differ, besides seed and folder, and besides what changes no result.

    Those of the network by their own names; its `config`, a letter, comes first.
    """
    settings = {}
    for trial in trials:
        values = trial.config.to_json()
        values = {name: values[name] for name in values if name not in CHANGEABLE | {"seed"}}
        settings[trial.label] = values.pop("network") | values
    names = [name for name in next(iter(settings.values())) if len({str(s[name]) for s in settings.values()}) > 1]
    names.sort(key=lambda name: name != "config")
    return {label: {name: values[name] for name in names} for label, values in settings.items()}
