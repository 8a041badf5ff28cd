"""Guides to choose among, and what each leaves to choose: weight, EMA lengths, the guide's time, the interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edm2.io.model import is_external
from edm2.sampling.generation import check_guide
from edm2.sampling.guidance import EVERYWHERE, Interval, interval_of_steps
from edm2.sweep.averages import Averages
from edm2.sweep.guides import DropoutGuide, Guide, GuideRun, UnlabelledGuide
from edm2.sweep.search import Axis, Coordinates, check_budget
from edm2.sweep.sweep import GUIDANCE_STEP, SIGMA_REL_STEP, Point
from edm2.training.data.codecs import are_alike
from edm2.training.run.inputs import change_of_data, read_inputs

GUIDES = ("unlabelled", "small", "early", "ema", "dropout")
"""Names of guides: the network without classes, a smaller one, the network early, of another EMA length, thinned."""

WITH_INTERVAL = ("unlabelled", "small")
"""Guides whose interval is searched, too."""

DROPOUTS = (0.05, 0.1, 0.2)
"""Rates of a network that guides itself with dropout."""

GUIDE_TIMES = (1 / 8, 1 / 4, 1 / 2, 1)
EARLY_TIMES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Training times of a guide of its own, and of the run itself, as fractions of the whole."""

ROUGH = 0.05
"""Error of a reconstructed profile above which an average is not offered as a guide."""


@dataclass(frozen=True)
class Candidate:
    """Settings that are chosen after training."""

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
class Choices:
    """Values that a search looks at first."""

    sigma_rels: tuple[float, ...] = (0.03, 0.06, 0.10, 0.15)
    """EMA lengths of the network."""
    weights: tuple[float, ...] = (1.2, 1.5, 2.0, 3.0)
    """Guidance weights."""
    guide_sigma_rels: tuple[float, ...] = (0.05, 0.10, 0.15, 0.20)
    """EMA lengths of the guide."""

    def alone(self, at: int) -> Method:
        """The network at one time, without guidance."""
        axes = (Axis("sigma_rel", self.sigma_rels, SIGMA_REL_STEP),)
        return Method("no guidance", axes, lambda values: Candidate(Point(at, values[0])))

    def method(self, name: str, averages: Averages, guide: Averages | None = None) -> Method:
        """Guidance of a run by one of `GUIDES`; `guide` is the run of "small".

        Raises:
            ValueError: the run does not have this guide.
        """
        match name:
            case "unlabelled":
                dropout = (averages.metadata.get("training") or {}).get("label_dropout")
                if not averages.config.label_dim or dropout == 0:
                    why = "has no classes" if not averages.config.label_dim else "saw the class of every image"
                    raise ValueError(f"{averages.folder}: {why}, so it cannot guide itself without; drop unlabelled")
                return self._by("classifier-free", [UnlabelledGuide()], averages)
            case "small":
                assert guide is not None
                guides = guides_of(guide, GUIDE_TIMES, self.guide_sigma_rels)
                if not guides:
                    raise ValueError(f"{guide.folder}: too few snapshots for a guide; train it longer")
                return self._by("autoguidance", guides, averages, self.guide_sigma_rels)
            case "early":
                early = [g for g in guides_of(averages, EARLY_TIMES, self.guide_sigma_rels) if g.at < averages.last]
                return self._by("early snapshot of itself", early, averages, self.guide_sigma_rels)
            case "ema":
                itself = [GuideRun(averages, averages.last)]
                return self._by("another EMA length of itself", itself, averages, self.guide_sigma_rels)
            case _:
                return self._by("itself with dropout", [DropoutGuide(rate) for rate in DROPOUTS], averages)

    def _by(
        self, name: str, guides: Sequence[Guide], averages: Averages, guide_sigma_rels: tuple[float, ...] = ()
    ) -> Method:
        """One of several guides, such as a run at several times, and its EMA length where it has one."""
        if not guides:
            raise ValueError(f"{averages.folder}: too few snapshots for {name}; train with more (--snapshot)")
        axes = [Axis("weight", self.weights, GUIDANCE_STEP), Axis("sigma_rel", self.sigma_rels, SIGMA_REL_STEP)]
        axes += [Axis("guide sigma_rel", guide_sigma_rels, SIGMA_REL_STEP)] if guide_sigma_rels else []
        axes += [Axis("guide", tuple(range(len(guides))), 1)]

        def candidate(values: Coordinates) -> Candidate:
            weight, sigma_rel, *of_guide, number = values
            return Candidate(Point(averages.last, sigma_rel, weight, *of_guide), guides[int(number)])

        return Method(name, tuple(axes), candidate)

    def available(self, averages: Averages, guides: Sequence[str] | None = None) -> tuple[str, ...]:
        """Guides that a run has: those asked for, or all.

        Raises:
            ValueError: it does not have one that is asked for.
        """
        found = []
        for name in GUIDES if guides is None else guides:
            try:
                if name != "small":
                    self.method(name, averages)
                found.append(name)
            except ValueError:
                if guides is not None:
                    raise
        return tuple(found)

    def check(self, budget: int) -> None:
        """Raise ValueError if a search with a budget would not even cover the longest lists."""
        lists = self.weights, self.sigma_rels, self.guide_sigma_rels, EARLY_TIMES
        check_budget([Axis("", values, 1) for values in lists], budget)


def in_interval(method: Method, best: Candidate, num_steps: int) -> Method:
    """The interval of the best guidance of a method, with a stronger weight; EMA lengths and guide stay.

    Its ends are steps of the sampler: the first with guidance and the first without it again.
    """
    strength = best.point.guidance - 1
    weights = sorted({round(1 + strength * factor, 2) for factor in (1, 1.5, 2.5)})
    half = num_steps // 2
    firsts = sorted({round(half * part) for part in (0, 1 / 2, 3 / 4, 1)})
    ends = sorted({max(half + 1, round(num_steps * part)) for part in (5 / 8, 3 / 4, 1)})

    def candidate(values: Coordinates) -> Candidate:
        first, end, weight = values
        everywhere = (first, end) == (0, num_steps)
        interval = EVERYWHERE if everywhere else interval_of_steps(int(first), int(end), num_steps)
        return replace(best, point=replace(best.point, guidance=weight), interval=interval)

    axes = Axis("first step", tuple(firsts), 1), Axis("end", tuple(ends), 1), Axis("weight", tuple(weights), 0.05)
    return Method(f"{method.name}, interval", axes, candidate)


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


def check_guide_run(averages: Averages, guide: Averages) -> None:
    """Refuse a guide of other images or classes, before anything is drawn.

    Raises:
        ValueError: the runs have networks of other shapes or classes, or were trained on other images.
    """
    for run in (averages, guide):
        if is_external(run.metadata):
            raise ValueError(
                f"{run.folder}: autoguide needs networks that edm2 builds; edm2 sweep --guide takes others"
            )
    check_guide(averages, guide, str(averages.folder), str(guide.folder))
    known, now = (read_inputs(run.folder).get("data") for run in (averages, guide))
    change = change_of_data(known, now) if known and now else None
    if change or not are_alike(averages.metadata.get("codec"), guide.metadata.get("codec")):
        reason = change or "scaled differently"
        raise ValueError(f"{guide.folder}: cannot guide {averages.folder}: it was trained on other images ({reason})")
