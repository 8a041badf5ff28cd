"""Precision and recall of samples: how many look real, and how many real images they cover (arXiv 1904.06991).

A set of images is modelled by balls around its features, each reaching to the k-th nearest neighbour.
"""

import numpy as np
import numpy.typing as npt

from edm2.metrics.distances import distance_blocks, nearest_other
from edm2.metrics.reference import Collection, evenly
from edm2.metrics.scores import FeaturesMetric, MetricValue

K = 3
"""Neighbours, as in the paper."""


def precision_recall(generated: npt.NDArray, real: npt.NDArray, k: int = K) -> tuple[float, float]:
    """Compute precision and recall; both depend on the number of images, so compare only scores of as many.

    Args:
        generated: Features [N, D].
        real: Features [M, D].
        k: Neighbours.

    Returns:
        Fraction of samples within a ball of a real image, and of real images within a ball of a sample.
    """
    if min(len(generated), len(real)) <= k:
        raise ValueError(f"precision and recall with k = {k} neighbours take at least {k + 1} images of each kind")
    return _fraction_within(generated, real, k), _fraction_within(real, generated, k)


def _fraction_within(points: npt.NDArray, centers: npt.NDArray, k: int) -> float:
    """Fraction of points within a ball of any center."""
    radii = nearest_other(centers, np.arange(len(centers)), k)
    inside = [(distances <= radii).any(axis=1) for _, distances in distance_blocks(points, centers)]
    return float(np.concatenate(inside).mean())


class PrecisionRecallMetric(FeaturesMetric):
    """Precision and recall, of as many real images as samples: balls shrink as their number grows."""

    lower_is_better = False

    def __call__(self, samples: Collection, title: str) -> list[MetricValue]:
        n = min(len(samples.features), len(self.real))
        precision, recall = precision_recall(evenly(samples.features, n), evenly(self.real, n))
        numbers = {"precision": precision, "recall": recall}
        return [MetricValue(name, name, self.detector, value) for name, value in numbers.items()]
