"""A sweep over EMA lengths, times and guidance: average, sample and score, point by point.

The network of a point is averaged from the snapshots together with those of other points, draws its images, and is
dropped. Scores are kept in `sweep.jsonl`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import torch

from edm2.sampling.external import SampledNetwork, ready_to_sample
from edm2.sampling.samplers.heun import Denoiser
from edm2.sweep.averages import RAW, Averages
from edm2.sweep.evaluator import Evaluator, MetricEvaluator, SampleSettings, Score, score_network
from edm2.sweep.guides import Guide
from edm2.sweep.score_cache import ScoreCache
from edm2.sweep.search import Axis, Coordinates, search
from edm2.training import Codec, Dataset
from edm2.training.distributed.processes import ONE_PROCESS, Processes

SIGMA_REL_STEP, GUIDANCE_STEP = 0.001, 0.05
"""Resolution of a search, in sigma_rel and in guidance weight."""


@dataclass(frozen=True)
class Point:
    """Choices that are made after training."""

    images_seen: int
    """Time with snapshots."""
    sigma_rel: float
    """EMA length; 0 for the weights without averaging, which a finished run has of its end."""
    guidance: float = 1.0
    """Guidance weight; 1 is none."""
    guide_sigma_rel: float | None = None
    """EMA length of the guide; None: that of the network, or no choice."""

    @property
    def used_guide_sigma_rel(self) -> float:
        """EMA length of the guide, chosen or that of the network."""
        return self.sigma_rel if self.guide_sigma_rel is None else self.guide_sigma_rel


@dataclass(frozen=True)
class ScoredPoint:
    """A point and its scores."""

    point: Point
    scores: tuple[Score, ...]
    """Scores, one per set of seeds."""

    @property
    def score(self) -> Score:
        """Lowest score."""
        return min(self.scores, key=lambda score: score.distance)

    @property
    def distance(self) -> float:
        """Lowest distance of all sets of seeds."""
        return self.score.distance


@dataclass(frozen=True)
class Sweep:
    """Scores of many points."""

    results: list[ScoredPoint]
    """Scored points in the order of the request."""
    real_data_fd: float | None = None
    """Frechet distance of as many real images; None without any."""
    title: str = "Frechet distance"
    """Name of the distance."""
    samples: int | None = None
    """Images per distance, which falls with their number; None: unknown."""

    @property
    def averages(self) -> list[ScoredPoint]:
        """Scored points of averaged weights."""
        return [result for result in self.results if result.point.sigma_rel != RAW]

    @property
    def raw(self) -> ScoredPoint | None:
        """Scored point of the weights without averaging, if it was asked for."""
        return next((result for result in self.results if result.point.sigma_rel == RAW), None)

    @property
    def best(self) -> ScoredPoint:
        """Average with the lowest distance; of equal ones the first."""
        return min(self.averages, key=lambda result: result.distance)


@dataclass(frozen=True)
class Range:
    """Points of a sweep."""

    times: Sequence[int]
    """Images seen."""
    sigma_rels: Sequence[float]
    """EMA lengths, sigma_rel."""
    guidances: Sequence[float] = (1.0,)
    """Guidance weights."""
    guide_sigma_rels: Sequence[float | None] = (None,)
    """EMA lengths of the guide; None: the same as the network's."""

    def points(self) -> list[Point]:
        """Combine all values; without guidance, the guide's EMA length makes no difference."""
        combined = product(self.times, self.sigma_rels, self.guidances, self.guide_sigma_rels)
        return list(dict.fromkeys(_point(*values) for values in combined))

    def axes(self) -> list[Axis]:
        """Coordinates that a search at one time varies."""
        axes = [Axis("sigma_rel", tuple(self.sigma_rels), SIGMA_REL_STEP)]
        axes.append(Axis("guidance", tuple(self.guidances), GUIDANCE_STEP))
        guide_sigma_rels = tuple(s for s in self.guide_sigma_rels if s is not None)
        if len(guide_sigma_rels) == len(self.guide_sigma_rels):
            axes.append(Axis("guide sigma_rel", guide_sigma_rels, SIGMA_REL_STEP))
        return axes


def _point(images_seen: int, sigma_rel: float, guidance: float = 1.0, guide_sigma_rel: float | None = None) -> Point:
    return Point(images_seen, sigma_rel, guidance, None if guidance == 1 else guide_sigma_rel)


@dataclass
class Sweeper:
    """Function from points to scores, with all its settings.

    Several processes share the images of every point; all get the scores that one process would compute.
    """

    averages: Averages
    """Averages of the run."""
    codec: Codec
    """Decoder of its samples to pixels."""
    evaluator: Evaluator | MetricEvaluator
    """Comparison with real images."""
    sampling: SampleSettings = field(default_factory=SampleSettings)
    """Settings of the samples."""
    guide: Guide | None = None
    """Guides where the guidance weight is not 1."""
    repeats: int = 1
    """Sets of seeds; the lowest score of all counts."""
    known: ScoreCache | None = None
    """Known scores; those of the first process are used."""
    processes: Processes = ONE_PROCESS
    """Processes that share the work."""
    device: torch.device | str = "cpu"
    """Device that this process computes on."""
    report: Callable[[int], object] = lambda n: None
    """Called with numbers of finished images, also of those with known scores."""
    scored: Callable[[ScoredPoint], object] = lambda result: None
    """Called with every point when its score is computed, in the first process."""
    programs: Mapping[str, str] = field(default_factory=dict)
    """Digests of the user's own programs that decide the images, such as that of a network."""
    first_set: int = 0
    """Number of the first set; sets have no seed in common."""

    def sweep(
        self,
        area: Range,
        dataset: Dataset | None = None,
        budget: int | None = None,
        progress: Callable[[int], AbstractContextManager[Any]] = lambda total: nullcontext(None),
    ) -> Sweep:
        """Score all points of `area`, or search it with at most `budget` points at each time.

        The raw weights of a finished run are scored too, if `area` ends where the run did.

        Args:
            area: Points to score, or ranges to search.
            dataset: Real images, as many of which are scored too.
            budget: Largest number of points of a search at each time.
            progress: Makes a progress bar for a number of images, such as tqdm's.

        Raises:
            ValueError: as `results` and `search`.
        """
        points = len(area.points()) if budget is None else budget * len(area.times)
        raw = [Point(area.times[-1], RAW)] if self.averages.has_raw_weights(area.times[-1]) else []
        with progress((points + len(raw)) * self.sampling.count * self.repeats) as bar:
            if bar is not None:
                self.report = bar.update
            results = self.results(area.points()) if budget is None else self.search(area, budget)
            results += self.results(raw)
        real_data_fd = None if dataset is None else self.real_data_fd(dataset)
        return Sweep(results, real_data_fd, self.evaluator.title, self.sampling.count)

    def real_data_fd(self, dataset: Dataset) -> float:
        """Frechet distance of as many real images; known, or computed."""
        evaluator: Any = self.evaluator  # by Frechet distance: other metrics have no such number
        count, facts = self.sampling.count, {"real_images": self.sampling.count, **self.evaluator.to_json()}
        return self.remembered(
            facts,
            {"real_images": count, "detector": facts["detector"]},
            lambda: Score(evaluator.real_data_fd(dataset, count, self.processes), None, None),
        ).distance

    def remembered(self, facts: dict[str, Any], shown: dict[str, Any], compute: Callable[[], Score]) -> Score:
        """Return the known score of `facts`, or compute and keep it; `shown` is written beside it, for people."""
        score = self.processes.broadcast(None if self.known is None else self.known.get(facts))
        return score or self._kept(facts, shown, compute())

    def _kept(self, facts: dict[str, Any], shown: dict[str, Any], score: Score) -> Score:
        score = self.processes.broadcast(score)
        if self.known is not None and self.processes.is_first:
            self.known.add(facts, shown, score)
        return score

    def ready(self, net: SampledNetwork) -> Any:
        """Fold a network of ours and move it to the device, as it draws samples."""
        return _ready(net, self.device, self.sampling.dtype)

    def score(
        self, net: SampledNetwork, guide: Denoiser | None = None, guidance: float = 1.0, set_number: int = 0
    ) -> Score:
        """Score a network that is `ready`, whether its score is known or not."""
        return score_network(
            net, self.codec, self.evaluator, self.sampling, guide, guidance, set_number, self.processes, self.report
        )

    def results(self, points: Sequence[Point]) -> list[ScoredPoint]:
        """Score points, in their order.

        Raises:
            ValueError: a network cannot be averaged, or guided; before anything is drawn.
        """
        self._check(points)
        known = {point: self._known(point) for point in points}
        known = self.processes.broadcast(known)
        self.report(self.sampling.count * sum(len(scores) for scores in known.values()))
        for point, score in self._missing(known):
            known[point].append(score)
            if self.processes.is_first and len(known[point]) == self.repeats:
                self.scored(ScoredPoint(point, tuple(known[point])))
        return [ScoredPoint(point, tuple(known[point])) for point in points]

    def search(self, area: Range, budget: int) -> list[ScoredPoint]:
        """Search for the best point at each time of `area`, with at most `budget` points each.

        Raises:
            ValueError: as `results`, or the budget is less than the lists of `area` take.
        """
        axes = area.axes()
        found: dict[Point, ScoredPoint] = {}  # without guidance, the guide makes no difference
        for time in area.times:

            def evaluate(coordinates: Sequence[Coordinates], time: int = time) -> list[float]:
                points = [_point(time, *values) for values in coordinates]
                results = self.results([point for point in dict.fromkeys(points) if point not in found])
                found.update((result.point, result) for result in results)
                return [found[point].distance for point in points]

            search(axes, evaluate, budget)
        return list(found.values())

    def _check(self, points: Sequence[Point]) -> None:
        if self.guide is None and any(point.guidance != 1 for point in points):
            raise ValueError("guidance needs a network to guide away from: give a guide")
        for time, group in _by_time(points):
            self.averages.check(time, [point.sigma_rel for point in group])

    def _known(self, point: Point) -> list[Score]:
        """Known scores of the first sets of seeds."""
        scores: list[Score] = []
        while self.known is not None and len(scores) < self.repeats:
            score = self.known.get(self._facts(point, self.first_set + len(scores)))
            if score is None:
                break
            scores.append(score)
        return scores

    def _missing(self, known: dict[Point, list[Score]]) -> Iterator[tuple[Point, Score]]:
        """Compute the scores that are not known yet, set by set."""
        todo = [point for point, scores in known.items() if len(scores) < self.repeats]
        for point, net, guide in networks_at(todo, self.averages, self.guide, self.device, self.sampling.dtype):
            for number in range(self.first_set + len(known[point]), self.first_set + self.repeats):
                score = self.score(net, guide, point.guidance, number)
                by = self.evaluator.to_json()
                shown: dict[str, Any] = {**asdict(point), "set": number, "detector": by["detector"]}
                shown |= {"metric": by["metric"]} if "metric" in by else {}
                shown |= {"steps": self.sampling.num_steps, "samples": self.sampling.count}
                yield point, self._kept(self._facts(point, number), shown, score)

    def _facts(self, point: Point, set_number: int) -> dict[str, Any]:
        """JSON of everything that decides a score."""
        guided = point.guidance != 1
        combined = self.averages.is_combined(point.images_seen, point.sigma_rel)
        return {
            **({"method": "tails"} if combined else {}),
            "run": self._fingerprint_at(point.images_seen),
            "point": asdict(replace(point, guide_sigma_rel=point.used_guide_sigma_rel if guided else None)),
            "guide": self._guide_identity if guided else None,
            "set": set_number,
            **self.settings,
        }

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Facts that all points have in common."""
        programs = {"programs": dict(self.programs)} if self.programs else {}  # keys of older scores have none
        return {"codec": self.codec.to_json(), **self.sampling.to_json(), **self.evaluator.to_json(), **programs}

    @cached_property
    def _guide_identity(self) -> Any:
        return None if self.guide is None else self.guide.to_json()

    @cached_property
    def _fingerprint_at(self) -> Callable[[int], str]:
        return cache(self.averages.fingerprint)


def networks_at(
    points: Sequence[Point], averages: Averages, guide: Guide | None, device: torch.device | str, dtype: torch.dtype
) -> Iterator[tuple[Point, Any, Any]]:
    """Yield points with their networks and guides, ready to sample, in the order that costs the least memory and time.

    As many networks as memory allows are averaged in one pass over the snapshots. Guides are None at a weight of 1;
    another weight needs `guide`.
    """
    for time, group in _by_time(points):
        sigma_rels = sorted({point.sigma_rel for point in group})
        for some in _chunks(sigma_rels, averages.at_once):
            nets = dict(zip(some, averages.networks(time, some), strict=True))
            here = [point for point in group if point.sigma_rel in nets]
            yield from _guided(here, nets, guide, device, dtype)


def _guided(
    points: Sequence[Point],
    nets: dict[float, SampledNetwork],
    guide: Guide | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Iterator[tuple[Point, Any, Any]]:
    """Yield points without guidance first, then the others by their guides."""
    for sigma_rel, net in nets.items():
        for point in points:
            if point.sigma_rel == sigma_rel and point.guidance == 1:
                yield point, _ready(net, device, dtype), None
    guided = [point for point in points if point.guidance != 1]
    sigma_rels = sorted({point.used_guide_sigma_rel for point in guided})
    if not guided:
        return
    assert guide is not None  # a weight besides 1 needs one
    for some in _chunks(sigma_rels, guide.at_once):
        guide.load(some, device, dtype)
        for point in guided:
            if point.used_guide_sigma_rel in some:
                net = _ready(nets[point.sigma_rel], device, dtype)
                yield point, net, guide.of(net, point.used_guide_sigma_rel)


def _ready(net: SampledNetwork, device: torch.device | str, dtype: torch.dtype) -> Any:
    return ready_to_sample(net, dtype).to(device)


def _by_time(points: Sequence[Point]) -> Iterator[tuple[int, list[Point]]]:
    for time in dict.fromkeys(point.images_seen for point in points):
        yield time, [point for point in points if point.images_seen == time]


def _chunks(values: Sequence[float], size: int) -> Iterator[Sequence[float]]:
    return (values[start : start + size] for start in range(0, len(values), size))
