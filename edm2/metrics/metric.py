"""The interface of a metric, and what metrics of single features have in common.

A metric names the detector whose features it takes, and how many features of single samples it needs; all metrics of
one detector share its features. `edm2.metrics.registry` lists them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edm2.metrics.reference import KEPT, Collection, read_features


@dataclass(frozen=True)
class MetricValue:
    """One number of a metric."""

    name: str
    """Name in files: frechet, kernel, precision, recall, inception_score."""
    title: str
    """Name for people."""
    detector: str
    """Name of the detector of the features."""
    value: float
    """The number."""
    deviation: float | None = None
    """Its uncertainty, if the metric knows it: a standard error, or a deviation over parts."""


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
class FeaturesMetric:
    """Base of metrics that compare with features of single real images."""

    detector: str
    real: npt.NDArray[np.float32]
    """Features of real images, [M, D]."""
    keep: int = KEPT
    lower_is_better = True

    @classmethod
    def from_reference(cls, reference: str | Path | None, detector: str | None) -> "FeaturesMetric":
        if reference is None:
            raise NoReferenceError
        return cls(detector, read_features(reference, detector))

    @property
    def num_features(self) -> int:
        """D of the reference."""
        return self.real.shape[1]
