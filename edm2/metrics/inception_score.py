"""Inception score: samples are each of one class, and together of all (arXiv 1606.03498)."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edm2.metrics.reference import Collection
from edm2.metrics.scores import MetricValue

SPLITS = 10
"""Parts of the samples, as in the literature."""


def inception_score(probabilities: npt.ArrayLike, splits: int = SPLITS) -> tuple[float, float]:
    """Compute exp E KL(p(y|x) || p(y)), between 1 and the number of classes.

    Args:
        probabilities: Class probabilities of every sample, [N, classes].
        splits: Parts, in the order of the samples.

    Returns:
        Mean and standard deviation over the parts.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if len(p) < splits:
        raise ValueError(f"the Inception score of {splits} parts takes at least as many images, not {len(p)}")
    scores = [_score(part) for part in np.array_split(p, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(p: npt.NDArray[np.float64]) -> float:
    """Inception score of one part [n, classes]; 0 log 0 = 0."""
    marginal = p.mean(axis=0, keepdims=True)
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)
    return float(np.exp((p * np.log(ratio)).sum(axis=1).mean()))


@dataclass(frozen=True)
class InceptionScoreMetric:
    """Inception score; needs no real images."""

    detector: str = "is"
    keep: int = sys.maxsize
    num_features: int | None = None
    lower_is_better = False

    @classmethod
    def from_reference(cls, reference: str | Path | None, detector: str | None) -> "InceptionScoreMetric":
        return cls()

    def __call__(self, samples: Collection, title: str) -> list[MetricValue]:
        return [MetricValue("inception_score", title, self.detector, *inception_score(samples.features))]
