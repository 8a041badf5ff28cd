"""Kernel distance between two sets of features: KID where the features are Inception's (arXiv 1801.01401)."""

import numpy as np
import numpy.typing as npt

from edm2.metrics.reference import Collection
from edm2.metrics.scores import FeaturesMetric, MetricValue

SUBSETS, SUBSET_SIZE = 100, 1000
"""Mean over a hundred pairs of random subsets of a thousand images, as in the literature."""


def kernel_distance(
    generated: npt.ArrayLike, real: npt.ArrayLike, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Squared maximum mean discrepancy with the polynomial kernel k(x, y) = (x·y / D + 1)³.

    Unlike the Frechet distance it has no bias, so sets of different sizes can be compared.

    Args:
        generated: Features [N, D].
        real: Features [M, D].
        subsets: Pairs of random subsets.
        subset_size: Images in each; all, if there are fewer.
        seed: Seed of the choice of subsets.

    Returns:
        Mean over pairs of subsets, which is around 0, also below, for sets from one distribution; and its standard
        error.
    """
    x, y = (np.asarray(features, dtype=np.float64) for features in (generated, real))
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"features of shapes {x.shape} and {y.shape} cannot be compared")
    size = min(subset_size, len(x), len(y))
    if size < 2:
        raise ValueError("the kernel distance compares pairs of images: it takes at least two of each kind")
    random = np.random.Generator(np.random.PCG64(seed))
    distances = [
        _discrepancy(random.choice(x, size, replace=False), random.choice(y, size, replace=False))
        for _ in range(subsets)
    ]
    return float(np.mean(distances)), float(np.std(distances) / np.sqrt(subsets))


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the discrepancy of n images [n, D] of each kind: no image is compared with itself."""
    n = len(x)
    within = [kernel.sum() - kernel.trace() for kernel in (_kernel(x, x), _kernel(y, y))]
    return sum(within) / (n * (n - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


class KernelMetric(FeaturesMetric):
    """Kernel distance to features of real images, titled KID for those of Inception."""

    def __call__(self, samples: Collection, title: str) -> list[MetricValue]:
        mean, error = kernel_distance(samples.features, self.real)
        title = "KID" if title.startswith("FID") else title.replace("FD", "KD")
        return [MetricValue("kernel", title, self.detector, mean, error)]
