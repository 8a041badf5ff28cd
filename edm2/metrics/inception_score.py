"""Inception score: samples are each of one class, and together of all (arXiv 1606.03498)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SPLITS = 10
"""As in the literature."""


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over parts of the samples."""

    mean: float
    std: float


def inception_score(probabilities: npt.ArrayLike, splits: int = SPLITS) -> InceptionScore:
    """exp E KL(p(y|x) || p(y)): between 1 and the number of classes.

    Args:
        probabilities: Of the classes for every sample, [N, classes].
        splits: Parts, in the order of the samples.

    Raises:
        ValueError: fewer samples than parts.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if len(p) < splits:
        raise ValueError(f"the Inception score of {splits} parts takes at least as many images, not {len(p)}")
    scores = [_score(part) for part in np.array_split(p, splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(p: npt.NDArray[np.float64]) -> float:
    """Of one part [n, classes]; 0 log 0 = 0."""
    marginal = p.mean(axis=0, keepdims=True)
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)
    return float(np.exp((p * np.log(ratio)).sum(axis=1).mean()))
