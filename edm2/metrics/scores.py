"""Metrics of a set of samples, computed in one pass over its images.

A metric says which detector it looks through and how many features of single samples it wants to see; all that ask for
the same detector share its features.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from edm2.metrics.detectors import DETECTORS, Detector
from edm2.metrics.features import Report, features_of_batches
from edm2.metrics.frechet import FeatureStatistics, frechet_distance
from edm2.metrics.inception_score import inception_score
from edm2.metrics.kernel import kernel_distance
from edm2.metrics.precision_recall import precision_recall
from edm2.metrics.reference import KEPT, Collection, evenly, read_features, read_reference
from edm2.post_hoc_ema.files import plain_line
from edm2.training.distributed.processes import ONE_PROCESS, Processes

FEW = 10_000
"""Images below which a Frechet distance says more about their number than about their quality."""

OTHERS = ("kid", "pr", "is")
"""Names of the metrics that are no Frechet distances; those have the names of their detectors."""


Features = npt.NDArray[np.float32]
"""[M, D]."""


@dataclass(frozen=True)
class Value:
    """One number of a metric."""

    name: str
    """In files: frechet, kernel, precision, recall, inception_score."""
    title: str
    """For people."""
    detector: str
    """By whose features."""
    value: float
    deviation: float | None = None
    """How far off it may be, as far as the metric tells: standard error, or deviation over parts."""


class Metric(Protocol):
    """What makes numbers of the features of samples."""

    detector: str
    """Name of the detector whose features it takes."""
    keep: int
    """How many features of single samples it wants, evenly spaced."""

    @property
    def width(self) -> int | None:
        """Features per image that it can compare with; None: any."""

    def __call__(self, samples: Collection, title: str) -> list[Value]:
        """Its numbers; `title` is what the detector calls its Frechet distance."""


@dataclass(frozen=True)
class FrechetMetric:
    """Frechet distance to the statistics of real images."""

    detector: str
    reference: FeatureStatistics
    keep: int = 0

    @property
    def width(self) -> int:
        """D of the reference."""
        return len(self.reference.mu)

    def __call__(self, samples: Collection, title: str) -> list[Value]:
        return [Value("frechet", title, self.detector, frechet_distance(samples.statistics, self.reference))]


@dataclass(frozen=True)
class FeaturesMetric:
    """What compares with features of real images, not with their statistics."""

    detector: str
    real: Features
    keep: int = KEPT

    @property
    def width(self) -> int:
        """D of the reference."""
        return self.real.shape[1]


class KernelMetric(FeaturesMetric):
    """Kernel distance."""

    def __call__(self, samples: Collection, title: str) -> list[Value]:
        found = kernel_distance(samples.features, self.real)
        title = "KID" if title.startswith("FID") else title.replace("FD", "KD")
        return [Value("kernel", title, self.detector, found.mean, found.error)]


class PrecisionRecallMetric(FeaturesMetric):
    """Precision and recall."""

    def __call__(self, samples: Collection, title: str) -> list[Value]:
        n = min(len(samples.features), len(self.real))  # balls shrink as their number grows: as many of each
        found = precision_recall(evenly(samples.features, n), evenly(self.real, n))
        return [Value(name, name, self.detector, getattr(found, name)) for name in ("precision", "recall")]


@dataclass(frozen=True)
class InceptionScoreMetric:
    """Inception score; real images are not asked."""

    detector: str = "is"
    keep: int = sys.maxsize
    width: int | None = None

    def __call__(self, samples: Collection, title: str) -> list[Value]:
        found = inception_score(samples.features)
        return [Value("inception_score", title, self.detector, found.mean, found.std)]


def metrics_from(reference: str | Path | None, names: Sequence[str], detector: str | None = None) -> list[Metric]:
    """The metrics of these names.

    Args:
        reference: File with what real images look like; None is enough for the Inception score.
        names: "kid", "pr" (precision and recall), "is" (Inception score), or detectors, for their Frechet distances.
            Empty: all Frechet distances that the reference has.
        detector: Through which kid and pr look; default: the first among `names`, or in the reference.

    Raises:
        ValueError: no metric or detector has this name, or the reference has not what a metric needs.
        OSError: it cannot be read.
    """
    _refuse_unknown([*names, *([detector] if detector else [])])
    statistics = {} if reference is None else _trusted(read_reference(reference), [*names, detector], reference)
    names = list(dict.fromkeys(names or statistics))
    detectors = [name for name in names if name not in OTHERS] or list(statistics)
    through = detector or next(iter(detectors), None)
    made: list[Metric] = []
    for name in names:
        if name == "is":
            made.append(InceptionScoreMetric())
        elif reference is None:
            raise ValueError(f"{name}: compares with real images: give --ref, made by edm2 metrics ref")
        elif name in ("kid", "pr"):
            made.append(
                (KernelMetric if name == "kid" else PrecisionRecallMetric)(through, read_features(reference, through))
            )
        elif name not in statistics:
            raise ValueError(
                f"{reference}: holds statistics of {', '.join(statistics)}, not of {name}; make them with "
                f"edm2 metrics ref DATA OUT.npz --detector {name}"
            )
        else:
            made.append(FrechetMetric(name, statistics[name]))
    return made


def _refuse_unknown(names: Sequence[str]) -> None:
    """A slip in a name must not look like something that the reference lacks."""
    for name in names:
        if name not in (*DETECTORS, *OTHERS) and ":" not in name:
            raise ValueError(
                f"there is no detector {name!r}; there are {', '.join(DETECTORS)}, and module:callable of your own "
                f"(other metrics: {', '.join(OTHERS)})"
            )


def _trusted(
    statistics: dict[str, FeatureStatistics], asked: Sequence[str | None], reference: str | Path
) -> dict[str, FeatureStatistics]:
    """Those by detectors of this program, or that were asked for: a file must not name other programs to be run."""
    trusted = {name: found for name, found in statistics.items() if name in DETECTORS or name in asked}
    if statistics and not trusted:
        found = plain_line(", ".join(statistics), 500)
        raise ValueError(f"{reference}: holds statistics by {found}, a program; if you trust it, name it (--metrics)")
    return trusted


def score(
    batches: Iterable[Tensor],
    count: int,
    num_images: int,
    metrics: Sequence[Metric],
    detectors: Mapping[str, Detector],
    processes: Processes = ONE_PROCESS,
    report: Report = lambda n: None,
) -> list[Value]:
    """Numbers of a set of samples.

    Args:
        batches: Images of this process's share: uint8 [N, C, H, W], see `features_of_batches`.
        count: Batches of all processes together.
        num_images: Images in them.
        metrics: What to compute.
        detectors: By name; all that the metrics name.
        processes: Who shares the work; the first gets the numbers, the others an empty list.
        report: Called with a number of images that are done.

    Raises:
        ValueError: fewer than two images, or features that cannot be compared with those of the reference.
    """
    if num_images < 2:
        raise ValueError(f"{num_images} image cannot be scored: a set of images is compared with another; give 50,000")
    keep = {name: max(m.keep for m in metrics if m.detector == name) for name in detectors}
    collections = {name: Collection(num_images, keep[name]) for name in detectors}
    for features in features_of_batches(batches, count, list(detectors.values()), processes, report):
        for (name, collection), part in zip(collections.items(), features, strict=True):
            if collection.sums.num_images == 0:  # now, not after hours
                _check_width(name, part.shape[1], metrics)
            collection.add(part)
    if not processes.is_first:
        return []
    numbers = [metric(collections[metric.detector], detectors[metric.detector].title) for metric in metrics]
    return [value for values in numbers for value in values]


def _check_width(detector: str, found: int, metrics: Sequence[Metric]) -> None:
    """Raises ValueError if a metric expects another number of features of this detector."""
    for metric in metrics:
        if metric.detector == detector and metric.width not in (None, found):
            raise ValueError(
                f"the reference holds {metric.width} features per image by {detector}, but these images have {found}: "
                "it was made of images of another size, or by another network"
            )


def warnings_about(num_images: int, width: int) -> list[str]:
    """What is wrong with the Frechet distance of so few images with `width` features."""
    if num_images >= FEW:
        return []
    found = [
        f"Frechet distances of {num_images:,} images are biased upwards: the fewer, the larger. Compare them only with "
        "others of as many; published ones are of 50,000"
    ]
    if num_images <= width:
        found.append(
            f"{num_images:,} images span {num_images - 1:,} of the {width:,} directions of these features: their "
            "covariance is singular, and the distance mostly says that there are too few"
        )
    return found
