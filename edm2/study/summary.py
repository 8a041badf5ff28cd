"""Summary of a variant: means and spreads over seeds, and the influence of the EMA length."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edm2.study.study import Failure, Outcome, Trial
from edm2.training.config import CHANGEABLE

NEAR = 1.1
"""Factor to the lowest distance up to which a distance is near it."""


@dataclass(frozen=True)
class Spread:
    """A quantity over seeds."""

    mean: float
    deviation: float | None
    """Standard deviation (n - 1); None for a single seed."""
    lowest: float
    highest: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """Summarize the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return _spread(known) if known else None


def _spread(known: Sequence[float]) -> Spread:
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), deviation, min(known), max(known))


@dataclass(frozen=True)
class Summary:
    """The finished trials of a variant."""

    label: str
    outcomes: tuple[Outcome, ...]
    failures: tuple[Failure, ...] = ()

    def over_seeds(self, quantity: Callable[[Outcome], float | None]) -> Spread | None:
        """Summarize a quantity of the outcomes; None if none of them has it."""
        return spread(map(quantity, self.outcomes))

    @property
    def curve(self) -> dict[float, Spread]:
        """Distance by sigma_rel."""
        sigma_rels = self.outcomes[0].distances if self.outcomes else ()
        return {sigma_rel: _spread([o.distances[sigma_rel] for o in self.outcomes]) for sigma_rel in sigma_rels}

    @property
    def best(self) -> float:
        """The sigma_rel with the lowest mean distance."""
        curve = self.curve
        return min(curve, key=lambda sigma_rel: curve[sigma_rel].mean)

    @property
    def near(self) -> tuple[float, float]:
        """Ends of the range of sigma_rel around the best one in which mean distances are near the lowest.

        The wider the range, the less the choice matters.
        """
        curve, best = dict(sorted(self.curve.items())), self.best
        far = [sigma_rel for sigma_rel, value in curve.items() if value.mean > NEAR * curve[best].mean]
        low, high = max([s for s in far if s < best], default=0), min([s for s in far if s > best], default=math.inf)
        near = [sigma_rel for sigma_rel in curve if low < sigma_rel < high]
        return near[0], near[-1]

    @property
    def losses(self) -> dict[float, Spread]:
        """lambda(sigma) (D - y)² by noise level."""
        return self._by_level([outcome.levels.losses for outcome in self.outcomes])

    def losses_over(self, reference: "Summary") -> dict[float, Spread]:
        """Ratios to another variant's losses with the same seed.

        That run has the same held-out images and noise. Where it is missing, its variant's mean losses stand in.
        """
        by_seed = {outcome.seed: outcome.levels.losses for outcome in reference.outcomes}
        means = [value.mean for value in reference.losses.values()]
        pairs = [(outcome.levels.losses, by_seed.get(outcome.seed, means)) for outcome in self.outcomes]
        return self._by_level([[a / b for a, b in zip(*pair, strict=True)] for pair in pairs])

    def _by_level(self, values: Sequence[Sequence[float]]) -> dict[float, Spread]:
        """Summarize lists of one value per noise level, by noise level."""
        return dict(zip(self.outcomes[0].levels.sigmas, map(_spread, zip(*values, strict=True)), strict=True))


def summarize(labels: Iterable[str], results: Sequence[Outcome | Failure]) -> list[Summary]:
    """Summarize the variants of which any run is finished, in the order of `labels`."""
    summaries = []
    for label in dict.fromkeys(labels):
        own = [result for result in results if result.label == label]
        failures = tuple(result for result in own if isinstance(result, Failure))
        if own:
            summaries.append(Summary(label, tuple(r for r in own if isinstance(r, Outcome)), failures))
    return summaries


def best_common_sigma_rel(summaries: Sequence[Summary]) -> float:
    """The sigma_rel with the lowest geometric mean of the variants' mean distances.

    Geometric, so that a variant of large distances does not decide for all.
    """
    curves = [summary.curve for summary in summaries]
    return min(curves[0], key=lambda sigma_rel: sum(math.log(max(curve[sigma_rel].mean, 1e-12)) for curve in curves))


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
