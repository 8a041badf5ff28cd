"""Which EMA length is best, at which time, with which guidance: average, sample and score, point by point.

A point is scored on the fly: its network is averaged from the snapshots together with those of other points, draws its
images, and is forgotten. Scores are kept in `sweep.jsonl`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import torch

from edm2.networks import Precond, fold
from edm2.sweep.averages import RAW, Averages
from edm2.sweep.evaluator import Drawing, Evaluator, Score, score_network
from edm2.sweep.guides import Guide
from edm2.sweep.score_cache import ScoreCache
from edm2.sweep.search import Axis, Place, search
from edm2.training import Codec, Dataset
from edm2.training.distributed.processes import ONE_PROCESS, Processes

LENGTH_STEP, WEIGHT_STEP = 0.001, 0.05
"""What a search tells apart: EMA lengths and guidance weights."""


@dataclass(frozen=True)
class Point:
    """What can be chosen after training."""

    images_seen: int
    """Time, one with snapshots."""
    sigma_rel: float
    """EMA length; 0 for the weights without averaging, which a finished run has of its end."""
    guidance: float = 1.0
    """Guidance weight; 1 is none."""
    guide_sigma_rel: float | None = None
    """EMA length of the guide; None: the same, or not to be chosen."""

    @property
    def length_of_guide(self) -> float:
        """EMA length of the guide."""
        return self.sigma_rel if self.guide_sigma_rel is None else self.guide_sigma_rel


@dataclass(frozen=True)
class Result:
    """A point and what it scored."""

    point: Point
    scores: tuple[Score, ...]
    """One per set of seeds."""

    @property
    def score(self) -> Score:
        """The lowest."""
        return min(self.scores, key=lambda score: score.distance)

    @property
    def distance(self) -> float:
        """Frechet distance, the lowest of all sets of seeds."""
        return self.score.distance


@dataclass(frozen=True)
class Sweep:
    """The results of many points."""

    results: list[Result]
    """In the order in which they were asked for."""
    floor: float | None = None
    """Distance of as many real images, if there are any."""
    title: str = "Frechet distance"
    """What the distance is called."""
    samples: int | None = None
    """Images per distance, which is lower the more there are; None: unknown."""

    @property
    def averages(self) -> list[Result]:
        """Those of averaged weights."""
        return [result for result in self.results if result.point.sigma_rel != RAW]

    @property
    def raw(self) -> Result | None:
        """That of the weights without averaging, if it was asked for."""
        return next((result for result in self.results if result.point.sigma_rel == RAW), None)

    @property
    def best(self) -> Result:
        """The average with the lowest distance; of equal ones the first."""
        return min(self.averages, key=lambda result: result.distance)


@dataclass(frozen=True)
class Range:
    """The points that a sweep looks at."""

    times: Sequence[int]
    """Images seen."""
    sigma_rels: Sequence[float]
    """EMA lengths."""
    guidances: Sequence[float] = (1.0,)
    """Guidance weights."""
    guide_sigma_rels: Sequence[float | None] = (None,)
    """EMA lengths of the guide; None: the same as the network's."""

    def points(self) -> list[Point]:
        """All combinations; without guidance, the guide's length makes no difference."""
        combined = product(self.times, self.sigma_rels, self.guidances, self.guide_sigma_rels)
        return list(dict.fromkeys(_point(*values) for values in combined))

    def axes(self) -> list[Axis]:
        """What a search at one time varies."""
        axes = [Axis("sigma_rel", tuple(self.sigma_rels), LENGTH_STEP)]
        axes.append(Axis("guidance", tuple(self.guidances), WEIGHT_STEP))
        if None not in self.guide_sigma_rels:
            axes.append(Axis("guide sigma_rel", tuple(self.guide_sigma_rels), LENGTH_STEP))
        return axes


def _point(images_seen: int, sigma_rel: float, guidance: float = 1.0, guide_sigma_rel: float | None = None) -> Point:
    return Point(images_seen, sigma_rel, guidance, None if guidance == 1 else guide_sigma_rel)


@dataclass
class Sweeper:
    """Scores points.

    Several processes share the images of every point; all get the same scores, those of one process.
    """

    averages: Averages
    """Of the run."""
    codec: Codec
    """Its way to pixels."""
    judge: Evaluator
    """What to compare with."""
    drawing: Drawing = field(default_factory=Drawing)
    """How to sample."""
    guide: Guide | None = None
    """What guides where the guidance weight is not 1."""
    repeats: int = 1
    """Sets of seeds; the lowest score of all counts."""
    known: ScoreCache | None = None
    """Scores that are known; the first process's is used."""
    processes: Processes = ONE_PROCESS
    """Who shares the work."""
    device: torch.device | str = "cpu"
    """Where this process computes."""
    report: Callable[[int], object] = lambda n: None
    """Hears of images that are done, also those that were done before."""

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
            area: Where to look.
            dataset: Real images; for what as many of them score.
            budget: As `search`.
            progress: Makes a progress bar for a number of images, such as tqdm's.

        Raises:
            ValueError: as `results` and `search`.
        """
        points = len(area.points()) if budget is None else budget * len(area.times)
        raw = [Point(area.times[-1], RAW)] if self.averages.has_raw_weights(area.times[-1]) else []
        with progress((points + len(raw)) * self.drawing.count * self.repeats) as bar:
            if bar is not None:
                self.report = bar.update
            results = self.results(area.points()) if budget is None else self.search(area, budget)
            results += self.results(raw)
        floor = None if dataset is None else self.floor(dataset)
        return Sweep(results, floor, self.judge.detector.title, self.drawing.count)

    def floor(self, dataset: Dataset) -> float:
        """What as many real images score; known, or computed."""
        facts = {"real_images": self.drawing.count, **self.judge.to_json()}
        score = self.processes.agreed(None if self.known is None else self.known.get(facts))
        if score is None:
            score = Score(self.judge.floor(dataset, self.drawing.count, self.processes), None, None)
            if self.known is not None and self.processes.is_first:
                self.known.add(facts, {"real_images": self.drawing.count, "detector": facts["detector"]}, score)
        return score.distance

    def results(self, points: Sequence[Point]) -> list[Result]:
        """Score points, in their order.

        Raises:
            ValueError: a network cannot be averaged, or guided; before anything is drawn.
        """
        self._check(points)
        known = {point: self._known(point) for point in points}
        known = self.processes.agreed(known)
        self.report(self.drawing.count * sum(len(scores) for scores in known.values()))
        for point, score in self._missing(known):
            known[point].append(score)
        return [Result(point, tuple(known[point])) for point in points]

    def search(self, area: Range, budget: int) -> list[Result]:
        """Look for the best point at each time of `area`, with at most `budget` points each.

        Raises:
            ValueError: as `results`, or the budget is less than the lists of `area` take.
        """
        axes = area.axes()
        found: dict[Point, Result] = {}  # without guidance, places that differ in the guide are one point
        for time in area.times:

            def evaluate(places: Sequence[Place], time: int = time) -> list[float]:
                points = [_point(time, *place) for place in places]
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
        """Scores of the first sets of seeds, as far as they are known."""
        scores: list[Score] = []
        while self.known is not None and len(scores) < self.repeats:
            score = self.known.get(self._facts(point, len(scores)))
            if score is None:
                break
            scores.append(score)
        return scores

    def _missing(self, known: dict[Point, list[Score]]) -> Iterator[tuple[Point, Score]]:
        """Points and scores that are not known yet, set by set."""
        todo = [point for point, scores in known.items() if len(scores) < self.repeats]
        for point, net, guide in self._networks(todo):
            for number in range(len(known[point]), self.repeats):
                score = score_network(
                    net,
                    self.codec,
                    self.judge,
                    self.drawing,
                    guide,
                    point.guidance,
                    number,
                    self.processes,
                    self.report,
                )
                score = self.processes.agreed(score)
                if self.known is not None and self.processes.is_first:
                    shown = {**asdict(point), "set": number, "detector": self.judge.detector.name}
                    self.known.add(self._facts(point, number), shown, score)
                yield point, score

    def _networks(self, points: Sequence[Point]) -> Iterator[tuple[Point, Precond, Any]]:
        """Points with their networks, as many as memory allows from one pass over the snapshots."""
        for time, group in _by_time(points):
            lengths = sorted({point.sigma_rel for point in group})
            for some in _chunks(lengths, self.averages.at_once):
                nets = dict(zip(some, self.averages.networks(time, some), strict=True))
                yield from self._guided([point for point in group if point.sigma_rel in nets], nets)

    def _guided(self, points: Sequence[Point], nets: dict[float, Precond]) -> Iterator[tuple[Point, Precond, Any]]:
        """Those without guidance first, then the others by what guides them."""
        for length, net in nets.items():
            for point in points:
                if point.sigma_rel == length and point.guidance == 1:
                    yield point, self._ready(net), None
        guided = [point for point in points if point.guidance != 1]
        lengths = sorted({point.length_of_guide for point in guided})
        for some in _chunks(lengths, self.guide.at_once if self.guide else 1):
            self.guide.load(some, self.device, self.drawing.dtype)
            for point in guided:
                if point.length_of_guide in some:
                    net = self._ready(nets[point.sigma_rel])
                    yield point, net, self.guide.of(net, point.length_of_guide)

    def _ready(self, net: Precond) -> Precond:
        return fold(net, self.drawing.dtype).to(self.device)

    def _facts(self, point: Point, set_number: int) -> dict[str, Any]:
        """All that decides a score."""
        guided = point.guidance != 1
        return {
            "run": self._fingerprint_at(point.images_seen),
            "point": asdict(replace(point, guide_sigma_rel=point.length_of_guide if guided else None)),
            "guide": self._guide_identity if guided else None,
            "set": set_number,
            **self._settings,
        }

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What all points have in common."""
        return {"codec": self.codec.to_json(), **self.drawing.to_json(), **self.judge.to_json()}

    @cached_property
    def _guide_identity(self) -> Any:
        return None if self.guide is None else self.guide.to_json()

    @cached_property
    def _fingerprint_at(self) -> Callable[[int], str]:
        return cache(self.averages.fingerprint)


def _by_time(points: Sequence[Point]) -> Iterator[tuple[int, list[Point]]]:
    for time in dict.fromkeys(point.images_seen for point in points):
        yield time, [point for point in points if point.images_seen == time]


def _chunks(values: Sequence[float], size: int) -> Iterator[Sequence[float]]:
    return (values[start : start + size] for start in range(0, len(values), size))
