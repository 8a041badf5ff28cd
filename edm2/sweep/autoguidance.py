"""Guidance by many guides: each at its own best settings, found jointly, and told apart by seeds or not.

A method is a guide and what it leaves to choose: weight, EMA lengths of network and guide, the guide's training time
or dropout, the interval. `search` proposes candidates, which are scored by few samples; the best of them by more
(successive halving); the best of all by seeds that no choice has seen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from scipy.stats import t as student

from edm2.io.guided import GuidedFile
from edm2.io.model import is_external, reconstructed_metadata, save
from edm2.sampling.generation import check_guide
from edm2.sampling.guidance import EVERYWHERE, Interval, guided, interval_of_steps
from edm2.sampling.samplers import Sampler
from edm2.sweep.averages import Averages
from edm2.sweep.evaluator import Score
from edm2.sweep.guides import DropoutGuide, Guide, GuideRun, UnlabelledGuide
from edm2.sweep.search import Axis, Coordinates, check_budget, search
from edm2.sweep.sweep import GUIDANCE_STEP, SIGMA_REL_STEP, Point, Sweeper
from edm2.training.run.inputs import change_of_data, read_inputs

WEIGHTS = (1.2, 1.5, 2.0, 2.5)
SIGMA_RELS = (0.03, 0.06, 0.10, 0.15)
GUIDE_SIGMA_RELS = (0.05, 0.10, 0.15, 0.20)
DROPOUTS = (0.05, 0.1, 0.2)
"""Values to look at first; `search` refines them."""

GUIDE_TIMES = (1 / 8, 1 / 4, 1 / 2, 1)
EARLY_TIMES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Training times of a guide of its own, and of the run itself, as fractions of the whole."""

ROUGH = 0.05
"""Error of a reconstructed profile above which an average is not offered as a guide."""

RUNGS = ((1, 1 / 4), (1 / 4, 1 / 2), (1 / 12, 1))
"""Successive halving: fraction of the candidates, and of the samples that each is scored by."""


@dataclass(frozen=True)
class Candidate:
    """All that is chosen after training."""

    point: Point
    """Time and EMA length of the network, weight, EMA length of the guide."""
    guide: Guide | None = None
    """Source of guides."""
    interval: Interval = EVERYWHERE
    """Noise levels with guidance."""


@dataclass(frozen=True)
class Method:
    """A guide, and what it leaves to choose."""

    name: str
    """Name for people."""
    axes: tuple[Axis, ...]
    """Coordinates of the search."""
    candidate: Callable[[Coordinates], Candidate]
    """Function to the candidate with these coordinates."""


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
    return abs(fmean(differences)) > student.ppf(0.975, len(differences) - 1) * error


@dataclass(frozen=True)
class Comparison:
    """Rows of all methods; the first is without guidance."""

    rows: tuple[Row, ...]

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
        """Best row; None if it is not told apart from sampling without guidance."""
        return None if self.rows[0] in self.rivals else self.best


# ----------------------------------------------------------------------------------------------------------- methods


def no_guidance(at: int, sigma_rels: Sequence[float] = SIGMA_RELS) -> Method:
    """The network alone."""
    axes = (Axis("sigma_rel", tuple(sigma_rels), SIGMA_REL_STEP),)
    return Method("no guidance", axes, lambda values: Candidate(Point(at, values[0])))


def guided_by(
    name: str,
    guides: Sequence[Guide],
    at: int,
    sigma_rels: Sequence[float] = SIGMA_RELS,
    weights: Sequence[float] = WEIGHTS,
    guide_sigma_rels: Sequence[float] = (),
) -> Method:
    """One of several guides (such as one run at several times), and its EMA length where it has one."""
    axes = [Axis("weight", tuple(weights), GUIDANCE_STEP), Axis("sigma_rel", tuple(sigma_rels), SIGMA_REL_STEP)]
    if guide_sigma_rels:
        axes.append(Axis("guide sigma_rel", tuple(guide_sigma_rels), SIGMA_REL_STEP))
    axes.append(Axis("guide", tuple(range(len(guides))), 1))

    def candidate(values: Coordinates) -> Candidate:
        weight, sigma_rel, *of_guide, number = values
        return Candidate(Point(at, sigma_rel, weight, *of_guide), guides[int(number)])

    return Method(name, tuple(axes), candidate)


def in_interval(row: Row, num_steps: int) -> Method:
    """The interval of a row's guidance, with a stronger weight; EMA lengths and guide stay.

    Its ends are steps of the sampler: the first with guidance and the first without it again.
    """
    strength = row.candidate.point.guidance - 1
    weights = sorted({round(1 + strength * factor, 2) for factor in (1, 1.5, 2.5)})
    half = num_steps // 2
    firsts = sorted({round(half * part) for part in (0, 1 / 2, 3 / 4, 1)})
    ends = sorted({max(half + 1, round(num_steps * part)) for part in (5 / 8, 3 / 4, 1)})

    def candidate(values: Coordinates) -> Candidate:
        first, end, weight = values
        interval = interval_of_steps(int(first), int(end), num_steps)
        return replace(row.candidate, point=replace(row.candidate.point, guidance=weight), interval=interval)

    axes = Axis("first step", tuple(firsts), 1), Axis("end", tuple(ends), 1), Axis("weight", tuple(weights), 0.05)
    return Method(f"{row.name}, interval", axes, candidate)


def guides_of(averages: Averages, fractions: Sequence[float], sigma_rels: Sequence[float]) -> list[GuideRun]:
    """A run's averages at the snapshots nearest to fractions of its time, where these EMA lengths can be made."""
    stored = sorted({snapshot.images_seen for snapshot in averages.snapshots if snapshot.images_seen > 0})
    wanted = {min(stored, key=lambda time: abs(time - fraction * averages.last)) for fraction in fractions}
    return [GuideRun(averages, time) for time in sorted(wanted) if _error(averages, time, sigma_rels) < ROUGH]


def _error(averages: Averages, at: int, sigma_rels: Sequence[float]) -> float:
    try:
        return max(averages.errors(at, sigma_rels).values())
    except ValueError:  # too few snapshots before
        return float("inf")


def free_methods(averages: Averages, sigma_rels: Sequence[float] = SIGMA_RELS) -> dict[str, Method]:
    """Methods whose guides cost no training, by name."""
    at, metadata = averages.last, averages.metadata
    by = partial(guided_by, at=at, sigma_rels=sigma_rels)
    found = {}
    if averages.config.label_dim and (metadata.get("training") or {}).get("label_dropout") != 0:
        found["unlabelled"] = by("classifier-free", [UnlabelledGuide()])
    early = [g for g in guides_of(averages, EARLY_TIMES, GUIDE_SIGMA_RELS) if g.at < at]
    if early:
        found["early"] = by("early snapshot of itself", early, guide_sigma_rels=GUIDE_SIGMA_RELS)
    found["ema"] = by("another EMA length of itself", [GuideRun(averages, at)], guide_sigma_rels=GUIDE_SIGMA_RELS)
    found["dropout"] = by("itself with dropout", [DropoutGuide(rate) for rate in DROPOUTS])
    return found


def check_guide_run(averages: Averages, guide: Averages) -> None:
    """Refuse a guide of other images or classes, before anything is drawn.

    Raises:
        ValueError: the runs have networks of other shapes or classes, or were trained on other images.
    """
    for run in (averages, guide):
        if is_external(run.metadata):
            raise ValueError(f"{run.folder}: autoguide needs networks that edm2 builds; edm2 sweep --guide takes others")
    nets = (run.networks(run.last, [run.snapshots[-1].sigma_rel or 0.1])[0] for run in (averages, guide))
    check_guide(*nets, str(averages.folder), str(guide.folder))
    known, now = (read_inputs(run.folder).get("data") for run in (averages, guide))
    change = change_of_data(known, now) if known and now else None
    if change or averages.metadata.get("codec") != guide.metadata.get("codec"):
        reason = change or "scaled differently"
        raise ValueError(f"{guide.folder}: cannot guide {averages.folder}: it was trained on other images ({reason})")


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

    def check(self, methods: Sequence[Method]) -> None:
        """Raise ValueError if the budget does not cover the lists of all methods."""
        for method in methods:
            try:
                check_budget(method.axes, self.budget)
            except ValueError as error:
                raise ValueError(f"{method.name}: {error}") from None

    def most_images(self) -> int:
        """Largest number of images that a method draws."""
        total = sum(self._survivors(self.budget, part) * self._count(share) for part, share in RUNGS)
        return total + self.sweeper.repeats * self.sweeper.sampling.count

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
        count, repeats = self.sweeper.sampling.count, self.sweeper.repeats
        [scores] = self._scores([candidate], count, first_set=1, repeats=repeats)
        sampling = self.sweeper.sampling
        cost = evaluations_per_image(sampling.sampler, sampling.num_steps, candidate)
        return Row(method.name, candidate, scores, tried, cost)

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
            sweeper = replace(
                self.sweeper, guide=guide, sampling=sampling, first_set=first_set, repeats=repeats
            )
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
        guide = _write_average(
            folder / "guide.safetensors", of_guide.averages, of_guide.at, point.used_guide_sigma_rel
        )
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
