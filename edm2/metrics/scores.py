"""The interface of a metric, and several metrics of a set of samples in one pass over its images.

A metric names the detector whose features it takes, and how many features of single samples it needs; all metrics of
one detector share its features. `edm2.metrics.registry` lists those that are no Frechet distance.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from edm2.metrics.detectors import Detector
from edm2.metrics.features import ReportProgress, features_of_batches
from edm2.metrics.frechet import FeatureStatistics, frechet_distance
from edm2.metrics.reference import KEPT, Collection, read_features, read_reference
from edm2.metrics.registry import DETECTORS, METRICS
from edm2.post_hoc_ema.files import plain_line
from edm2.training.distributed.processes import ONE_PROCESS, Processes
from edm2.training.imports import import_target

FEW = 10_000
"""Images below which a Frechet distance says more about their number than about their quality."""


@dataclass(frozen=True)
class MetricValue:
    """One number of a metric."""

    name: str
    """Name in files: frechet, kernel, precision, recall, inception_score."""
    title: str
    detector: str
    value: float
    deviation: float | None = None
    """Uncertainty, if the metric knows it: a standard error, or a deviation over parts."""


class NoReferenceError(ValueError):
    """A metric compares with real images, and none are given."""

    def __init__(self) -> None:
        super().__init__("compared with what? Give --ref, a file that edm2 metrics ref makes of real images")


class Metric(Protocol):
    """Function from the features of samples to numbers."""

    detector: str
    """Name of the detector whose features it takes."""
    keep: int
    """Features of single samples that it needs, evenly spaced."""
    num_features: int | None
    """Features per image that it can compare with; None: any."""
    lower_is_better: bool
    """True if a sweep of its first number looks for the lowest."""

    @classmethod
    def from_reference(cls, reference: str | Path | None, detector: str | None) -> "Metric":
        """Read what it compares with.

        Args:
            reference: Reference file; None if none was given.
            detector: Name of the detector, unless the metric has one of its own.

        Raises:
            NoReferenceError: a file is needed, and none was given.
            ValueError: the file lacks what the metric needs.
            OSError: it cannot be read.
        """

    def __call__(self, samples: Collection, title: str) -> list[MetricValue]:
        """Compute its numbers; `title` is the title of the detector's Frechet distance."""


@dataclass(frozen=True)
class FrechetMetric:
    """Frechet distance to the statistics of real images."""

    detector: str
    reference: FeatureStatistics
    keep: int = 0
    lower_is_better = True

    @property
    def num_features(self) -> int:
        """D of the reference."""
        return len(self.reference.mu)

    def __call__(self, samples: Collection, title: str) -> list[MetricValue]:
        return [MetricValue("frechet", title, self.detector, frechet_distance(samples.statistics, self.reference))]


@dataclass(frozen=True)
class FeaturesMetric:
    """Base of metrics that compare with features of single real images."""

    detector: str
    real: npt.NDArray[np.float32]
    """Features of real images, [M, D]."""
    keep: int = KEPT
    lower_is_better = True

    @classmethod
    def from_reference(cls, reference: str | Path | None, detector: str | None) -> "FeaturesMetric":
        if reference is None or detector is None:
            raise NoReferenceError
        return cls(detector, read_features(reference, detector))

    @property
    def num_features(self) -> int:
        """D of the reference."""
        return self.real.shape[1]


def metrics_from(reference: str | Path | None, names: Sequence[str], detector: str | None = None) -> list[Metric]:
    """Make the metrics of these names.

    Args:
        reference: Reference file of real images; None is enough for the Inception score.
        names: Keys of `METRICS`, or detectors, for their Frechet distances. Empty: all Frechet distances that the
            reference has.
        detector: Detector of the metrics in `METRICS`; default: the first among `names`, or in the reference.

    Raises:
        NoReferenceError: a metric needs a reference.
        ValueError: no metric or detector has this name, or the reference lacks what a metric needs.
        OSError: it cannot be read.
    """
    _refuse_unknown(names, (*DETECTORS, *METRICS))
    _refuse_unknown([detector] if detector else [], DETECTORS)
    statistics = {} if reference is None else _trusted(read_reference(reference), [*names, detector], reference)
    names = list(dict.fromkeys(names or statistics))
    if not names:
        raise NoReferenceError
    detectors = [name for name in names if name not in METRICS] or list(statistics)
    default = detector or next(iter(detectors), None)
    metrics: list[Any] = [
        import_target(METRICS[name]).from_reference(reference, default)
        if name in METRICS
        else _frechet(name, statistics, reference)
        for name in names
    ]
    return metrics


def _frechet(name: str, statistics: Mapping[str, FeatureStatistics], reference: str | Path | None) -> FrechetMetric:
    if reference is None:
        raise NoReferenceError
    if name not in statistics:
        raise ValueError(
            f"{reference}: holds statistics of {', '.join(statistics)}, not of {name}; make them with "
            f"edm2 metrics ref DATA OUT.npz --detector {name}"
        )
    return FrechetMetric(name, statistics[name])


def _refuse_unknown(names: Sequence[str], known: Container[str]) -> None:
    """Raise ValueError for a misspelt name, which must not look like something that the reference lacks."""
    for name in names:
        if name not in known and ":" not in name:
            raise ValueError(
                f"there is no detector {name!r}; there are {', '.join(DETECTORS)}, and module:callable of your own "
                f"(other metrics: {', '.join(METRICS)})"
            )


def _trusted(
    statistics: dict[str, FeatureStatistics], asked: Sequence[str | None], reference: str | Path
) -> dict[str, FeatureStatistics]:
    """Statistics by registered detectors, or by those asked for: a file must not name other programs to be run."""
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
    report: ReportProgress = lambda n: None,
) -> list[MetricValue]:
    """Compute the metrics of a set of samples.

    Args:
        batches: Batches of this process: uint8 [N, C, H, W], see `features_of_batches`.
        count: Batches of all processes together.
        num_images: Images in them.
        metrics: Metrics to compute.
        detectors: Detectors by name; all that the metrics name.
        processes: Processes that share the work; the first gets the numbers, the others an empty list.
        report: Called with a number of finished images.

    Raises:
        ValueError: fewer than two images, or features that cannot be compared with those of the reference.
    """
    if num_images < 2:
        raise ValueError(f"{num_images} image cannot be scored: a set of images is compared with another; give 50,000")
    keep = {name: max(m.keep for m in metrics if m.detector == name) for name in detectors}
    collections = {name: Collection(num_images, keep[name]) for name in detectors}
    for features in features_of_batches(batches, count, list(detectors.values()), processes, report):
        for (name, collection), part in zip(collections.items(), features, strict=True):
            if collection.sums.num_images == 0:  # before hours of sampling
                _check_num_features(name, part.shape[1], metrics)
            collection.add(part)
    if not processes.is_first:
        return []
    numbers = [metric(collections[metric.detector], detectors[metric.detector].title) for metric in metrics]
    return [value for values in numbers for value in values]


def _check_num_features(detector: str, found: int, metrics: Sequence[Metric]) -> None:
    """Raise ValueError if a metric expects another number of features of this detector."""
    for metric in metrics:
        if metric.detector == detector and metric.num_features not in (None, found):
            raise ValueError(
                f"the reference holds {metric.num_features} features per image by {detector}, but these images have "
                f"{found}: it was made of images of another size, or by another network"
            )


def warnings_about(num_images: int, num_features: int) -> list[str]:
    """Reasons why the Frechet distance of so few images says little about their quality."""
    if num_images >= FEW:
        return []
    found = [
        f"Frechet distances of {num_images:,} images are biased upwards: the fewer, the larger. Compare them only with "
        "others of as many; published ones are of 50,000"
    ]
    if num_images <= num_features:
        found.append(
            f"{num_images:,} images span {num_images - 1:,} of the {num_features:,} directions of these features: "
            "their covariance is singular, and the distance mostly says that there are too few"
        )
    return found
