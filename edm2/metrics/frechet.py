"""Frechet distance between two sets of features, each summarized by mean and covariance (arXiv 1706.08500)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
from torch import Tensor

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of features, float64."""

    mu: Array
    """[D]."""
    sigma: Array
    """[D, D], unbiased."""
    num_images: int
    """Images that they come from."""


class FeatureSums:
    """Sums of features in float64: any number of images takes the memory of one covariance."""

    def __init__(self) -> None:
        self.num_images = 0
        """Images so far."""
        self.sum: Array | None = None
        """Sum of f, [D]; None before the first image."""
        self.products: Array | None = None
        """Sum of f fᵀ, [D, D]."""

    def add(self, features: Tensor | npt.ArrayLike) -> None:
        """Add the features of some images, [N, D].

        Raises:
            ValueError: not finite, not of this shape, or of another D than those before.
        """
        f = np.asarray(features.cpu() if isinstance(features, Tensor) else features, dtype=np.float64)
        if f.ndim != 2:
            raise ValueError(f"features of shape {f.shape}: expected one row per image, [N, D]")
        if not np.isfinite(f).all():
            raise ValueError("features contain NaN or infinity")
        if self.sum is None or self.products is None:
            self.sum, self.products = np.zeros(f.shape[1]), np.zeros((f.shape[1], f.shape[1]))
        if f.shape[1] != self.sum.size:
            raise ValueError(f"{f.shape[1]} features per image, but {self.sum.size} in those before")
        self.num_images += len(f)
        self.sum += f.sum(axis=0)
        self.products += f.T @ f

    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of all images so far.

            mu = sum f / n        sigma = (sum f fᵀ - n mu muᵀ) / (n - 1)

        Raises:
            ValueError: fewer than two images.
        """
        n = self.num_images
        if n < 2:
            raise ValueError(f"{n} image{'s' * (n != 1)}: a covariance takes at least two, and a score about 50,000")
        assert self.sum is not None  # there were images
        assert self.products is not None
        mu = self.sum / n
        return FeatureStatistics(mu, (self.products - n * np.outer(mu, mu)) / (n - 1), n)


def feature_statistics(features: Tensor | npt.ArrayLike) -> FeatureStatistics:
    """Mean and covariance of features [N, D], with N of at least 2.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    sums = FeatureSums()
    sums.add(features)
    return sums.statistics()


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Frechet distance of the two Gaussians with these statistics.

        d = |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^½)

    S_a S_b has the eigenvalues of the symmetric Fᵀ S_b F, where F Fᵀ = S_a. Those are real by construction, take a
    fraction of the time of a general matrix's square root, and are accurate for singular covariances.

    Raises:
        ValueError: the statistics are of different features.
    """
    if a.mu.shape != b.mu.shape:
        raise ValueError(f"statistics of {a.mu.size} and {b.mu.size} features cannot be compared")
    factor = _factor(a.sigma)
    values = scipy.linalg.eigvalsh(factor.T @ b.sigma @ factor) if factor.size else np.zeros(1)
    cross = np.sqrt(np.clip(values, 0, None)).sum()
    distance = np.sum((a.mu - b.mu) ** 2) + np.trace(a.sigma + b.sigma) - 2 * cross
    return max(0.0, float(distance))  # equal statistics come out at 1e-13, on either side


def _factor(matrix: Array) -> Array:
    """Factor F [D, rank] of a positive semidefinite F Fᵀ [D, D]: Cholesky's with pivots, which ends at the rank."""
    packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(matrix, lower=1)
    factor = np.empty((len(matrix), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    return factor


RESAMPLES = 40
"""Random halves; the standard deviation of so many is known to 11 per cent."""

MAX_WORK = 3e9
"""Multiplications per resample that count as cheap, about a tenth of a second."""


def frechet_deviation(features: npt.ArrayLike, reference: FeatureStatistics) -> float | None:
    """Standard deviation of the Frechet distance to `reference`, from random halves of the features.

    Args:
        features: [N, D].
        reference: Statistics that the distance is to; taken as exact.

    Returns:
        None for fewer than four images, and where it would not be cheap: for tens of thousands of images with thousands
        of features.
    """
    features = np.asarray(features, dtype=np.float64)
    count, size = features.shape
    if count < 4 or count * size * min(count, size) > MAX_WORK:
        return None
    deviations = features - reference.mu
    projected = deviations @ _square_root(reference.sigma)
    random = np.random.Generator(np.random.PCG64(0))  # fixed: the same features always have the same deviation
    halves = [random.permutation(count)[: count // 2] for _ in range(RESAMPLES)]
    return float(np.std([_variable_part(deviations[half], projected[half]) for half in halves], ddof=1))


def _variable_part(deviations: Array, projected: Array) -> float:
    """Terms of |mu - mu_r|² + tr(S + S_r - 2 (S_r^½ S S_r^½)^½) that depend on the samples.

    `deviations` [N, D] are from mu_r and `projected` the same times S_r^½. The trace of the root is the sum of the
    singular values of `projected` about its mean, found from the smaller of its two Gram matrices.
    """
    mean = deviations.mean(axis=0)
    scale = len(deviations) - 1
    centered = projected - projected.mean(axis=0)
    gram = centered.T @ centered if len(centered) > centered.shape[1] else centered @ centered.T
    cross = np.sqrt(np.clip(scipy.linalg.eigvalsh(gram), 0, None) / scale).sum()
    return float(mean @ mean + np.square(deviations - mean).sum() / scale - 2 * cross)


def _square_root(matrix: Array) -> Array:
    """Symmetric square root of a positive semidefinite matrix."""
    values, vectors = scipy.linalg.eigh(np.atleast_2d(matrix))
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
