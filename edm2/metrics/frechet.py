"""Frechet distance between two sets of features, each summarized by mean and covariance (arXiv 1706.08500)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of features, float64."""

    mu: Array
    """[D]."""
    sigma: Array
    """[D, D], unbiased."""
    num_images: int
    """How many images they come from."""


def feature_statistics(features: npt.ArrayLike) -> FeatureStatistics:
    """Statistics of features [N, D]; N of at least 2.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {features.shape}: a covariance takes at least two images, as [N, D]")
    if not np.isfinite(features).all():
        raise ValueError("features contain NaN or infinity")
    return FeatureStatistics(features.mean(axis=0), np.cov(features, rowvar=False), len(features))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Distance of the two Gaussians with these statistics.

        d = |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a^½ S_b S_a^½)^½)

    Symmetric eigenvalue problems take the place of the square root of a general matrix: faster, real by construction,
    and sound for singular covariances.

    Raises:
        ValueError: the statistics are of different features.
    """
    if a.mu.shape != b.mu.shape:
        raise ValueError(f"statistics of {a.mu.size} and {b.mu.size} features cannot be compared")
    root_a = _square_root(np.atleast_2d(a.sigma))
    middle = scipy.linalg.eigvalsh(root_a @ np.atleast_2d(b.sigma) @ root_a)
    cross = np.sqrt(np.clip(middle, 0, None)).sum()
    return float(np.sum((a.mu - b.mu) ** 2) + np.trace(np.atleast_2d(a.sigma + b.sigma)) - 2 * cross)


def _square_root(matrix: Array) -> Array:
    """Symmetric square root of a positive semidefinite matrix."""
    values, vectors = scipy.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
