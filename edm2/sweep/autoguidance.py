"""Guidance by many guides: each at its own best settings, found jointly, and told apart by seeds or not.

`search` proposes candidates of a method, which are scored by few samples; the best of them by more (successive
halving); the best of all by seeds that no choice has seen. The best method is then compared with sampling without
guidance by yet other seeds, since it is the best of many by the first ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from scipy.stats import t as student

from edm2.io.guided import GuidedFile
from edm2.io.model import reconstructed_metadata, save
from edm2.sampling.guidance import Interval, guided
from edm2.sampling.samplers import Sampler
from edm2.sweep.averages import Averages
from edm2.sweep.evaluator import Score
from edm2.sweep.guidance_methods import WITH_INTERVAL, Candidate, Choices, Method, check_guide_run, in_interval
from edm2.sweep.guides import DropoutGuide, Guide, GuideRun
from edm2.sweep.search import Coordinates, search
from edm2.sweep.sweep import Sweeper

RUNGS = ((1, 1 / 4), (1 / 4, 1 / 2), (1 / 12, 1))
"""Successive halving: fraction of the candidates, and of the samples that each is scored by."""


@dataclass(frozen=True)
class Row:
    """A method at its best settings."""

    name: str
    """Name of the method."""
    candidate: Candidate
    """Best candidate."""
    scores: tuple[Score, ...]
    """Scores by sets of seeds that no choice has seen."""
    tried: int
    """Candidates that were scored."""
    evaluations: tuple[int, int]
    """Evaluations of the network and of the guide per image."""

    @property
    def distance(self) -> float:
        """Mean distance over sets of seeds."""
        return fmean(score.distance for score in self.scores)

    @property
    def deviation(self) -> float | None:
        """Standard deviation between sets of seeds; of one set, that of its score."""
        if len(self.scores) == 1:
            return self.scores[0].deviation
        return stdev(score.distance for score in self.scores)


def told_apart(a: Row, b: Row) -> bool:
    """True if seeds tell two rows apart, at a level of 5 %.

    By Student's t of the differences set by set, as both draw the same seeds; of one set by its two deviations.
    """
    if len(a.scores) == 1:
        deviations = [score.deviation for score in (a.scores[0], b.scores[0])]
        if None in deviations:
            return False
        return abs(a.distance - b.distance) > 2 * sum(d * d for d in deviations if d is not None) ** 0.5
    differences = [one.distance - other.distance for one, other in zip(a.scores, b.scores, strict=True)]
    error = stdev(differences) / len(differences) ** 0.5
    return bool(abs(fmean(differences)) > student.ppf(0.975, len(differences) - 1) * error)


@dataclass(frozen=True)
class Comparison:
    """Rows of all methods; the first is without guidance."""

    rows: tuple[Row, ...]
    fresh: tuple[Row, Row] | None = None
    """Sampling without guidance and the best row, by seeds that did not choose it; None if these are one."""

    @property
    def best(self) -> Row:
        """Row with the lowest mean distance."""
        return min(self.rows, key=lambda row: row.distance)

    @property
    def rivals(self) -> list[Row]:
        """Rows that these seeds cannot tell from the best."""
        return [row for row in self.rows if row is not self.best and not told_apart(row, self.best)]

    @property
    def winner(self) -> Row | None:
        """Best row; None if fresh seeds do not tell it from sampling without guidance."""
        if self.fresh is None:
            return self.best
        alone, best = self.fresh
        return self.best if best.distance < alone.distance and told_apart(alone, best) else None


# ------------------------------------------------------------------------------------------------------------ search


@dataclass
class GuidanceSearch:
    """Search for the best settings of methods.

    Args:
        sweeper: The run's sweeper; its samples are those of the last rung, its `repeats` the sets of fresh seeds.
        budget: Candidates per method.
    """

    sweeper: Sweeper
    budget: int
    choices: Choices = field(default_factory=Choices)
    found: Callable[[Row], object] = lambda row: None
    """Called with every row when it is known."""

    def compare(self, guides: Sequence[str], guide: Averages | None = None) -> Comparison:
        """Find the best settings of some of `GUIDES`; `guide` is the run of "small".

        Raises:
            ValueError: a guide does not suit the run, or the budget is less than the lists take; before anything is
                drawn.
        """
        self.choices.check(self.budget)
        averages = self.sweeper.averages
        if guide is not None:
            check_guide_run(averages, guide)
        methods = {name: self.choices.method(name, averages, guide) for name in guides}
        rows = [self.row(self.choices.alone(averages.last))]
        for name, method in methods.items():
            rows.append(self.row(method))
            if name in WITH_INTERVAL:
                rows.append(self.row(in_interval(method, rows[-1].candidate, self.sweeper.sampling.num_steps)))
        comparison = Comparison(tuple(rows))
        if comparison.best is rows[0]:
            return comparison
        first = 1 + self.sweeper.repeats
        alone, best = (replace(row, scores=self._fresh(row.candidate, first)) for row in (rows[0], comparison.best))
        return replace(comparison, fresh=(alone, best))

    def images(self, guides: Sequence[str]) -> int:
        """Largest number of images that `compare` draws."""
        one = sum(self._survivors(self.budget, part) * self._count(share) for part, share in RUNGS)
        fresh = self.sweeper.repeats * self.sweeper.sampling.count
        return (one + fresh) * (1 + len(guides) + len(set(guides) & set(WITH_INTERVAL))) + 2 * fresh

    def row(self, method: Method) -> Row:
        """Find the best settings of a method, by successive halving, and score them by fresh seeds.

        Raises:
            ValueError: the budget is less than the lists take.
        """
        (_, first), *rungs = RUNGS

        def distances(coordinates: Sequence[Coordinates], share: float = first) -> list[float]:
            candidates = [method.candidate(values) for values in coordinates]
            return [scores[0].distance for scores in self._scores(candidates, self._count(share))]

        known = search(method.axes, distances, self.budget)
        tried = len(known)
        for part, share in rungs:
            best = sorted(known, key=known.__getitem__)[: self._survivors(tried, part)]
            known = dict(zip(best, distances(best, share), strict=True))
        candidate = method.candidate(min(known, key=known.__getitem__))
        sampling = self.sweeper.sampling
        cost = evaluations_per_image(sampling.sampler, sampling.num_steps, candidate)
        row = Row(method.name, candidate, self._fresh(candidate, 1), tried, cost)
        self.found(row)
        return row

    def _fresh(self, candidate: Candidate, first_set: int) -> tuple[Score, ...]:
        count, repeats = self.sweeper.sampling.count, self.sweeper.repeats
        [scores] = self._scores([candidate], count, first_set=first_set, repeats=repeats)
        return scores

    def _count(self, share: float) -> int:
        return max(2, round(share * self.sweeper.sampling.count))

    def _survivors(self, tried: int, part: float) -> int:
        return min(tried, max(2, round(part * tried)))

    def _scores(
        self, candidates: Sequence[Candidate], count: int, first_set: int = 0, repeats: int = 1
    ) -> list[tuple[Score, ...]]:
        """Score candidates in groups that share guides."""
        found: dict[Candidate, tuple[Score, ...]] = {}
        for guide, interval, group in _grouped(candidates):
            sampling = replace(self.sweeper.sampling, count=count, interval=interval)
            sweeper = replace(self.sweeper, guide=guide, sampling=sampling, first_set=first_set, repeats=repeats)
            results = sweeper.results([candidate.point for candidate in group])
            found |= {candidate: result.scores for candidate, result in zip(group, results, strict=True)}
            if guide is not None:
                guide.load((), self.sweeper.device, sampling.dtype)  # frees the networks
        return [found[candidate] for candidate in candidates]


def _grouped(candidates: Sequence[Candidate]) -> Iterator[tuple[Guide | None, Interval, list[Candidate]]]:
    for guide, interval in dict.fromkeys((c.guide, c.interval) for c in candidates):
        yield guide, interval, [c for c in candidates if (c.guide, c.interval) == (guide, interval)]


def evaluations_per_image(sampler: Sampler, num_steps: int, candidate: Candidate) -> tuple[int, int]:
    """Count the evaluations of network and guide, by sampling nothing with denoisers that count."""
    calls = [0, 0]

    def counted(number: int) -> Callable[..., torch.Tensor]:
        def denoise(x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
            calls[number] += 1
            return x

        return denoise

    denoiser = guided(counted(0), counted(1), candidate.point.guidance, candidate.interval)
    sampler.sample(denoiser, torch.zeros(1, 1, 1, 1), num_steps=num_steps)
    return calls[0], calls[1]


# ------------------------------------------------------------------------------------------------------------ result


def write_guided(folder: Path, row: Row, averages: Averages) -> Path:
    """Write the networks of a row, and guided.json, which `edm2.load` reads as one network; return its path."""
    candidate, point = row.candidate, row.candidate.point
    network = _write_average(folder / "network.safetensors", averages, point.images_seen, point.sigma_rel)
    guide = None
    if isinstance(candidate.guide, GuideRun):
        of_guide = candidate.guide
        guide = _write_average(folder / "guide.safetensors", of_guide.averages, of_guide.at, point.used_guide_sigma_rel)
    dropout = candidate.guide.rate if isinstance(candidate.guide, DropoutGuide) else None
    about = {
        "method": row.name,
        "distances": [score.distance for score in row.scores],
        "evaluations_per_image": list(row.evaluations),
    }
    path = folder / "guided.json"
    GuidedFile(network, guide, point.guidance, candidate.interval, dropout).write(path, about)
    return path


def _write_average(path: Path, averages: Averages, at: int, sigma_rel: float) -> Path:
    [net] = averages.networks(at, [sigma_rel])
    save(net, path, reconstructed_metadata(averages.snapshots, at, sigma_rel))
    return path
