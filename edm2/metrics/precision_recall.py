"""Precision and recall of samples: how many look real, and how much of what is real they cover (arXiv 1904.06991).

A set of images is thought of as balls around its features, each reaching to the k-th nearest neighbour.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edm2.metrics.distances import distance_blocks, nearest_other

K = 3
"""Neighbours; as in the paper."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Both in [0, 1]."""

    precision: float
    """Share of samples within a ball of a real image."""
    recall: float
    """Share of real images within a ball of a sample."""


def precision_recall(generated: npt.NDArray, real: npt.NDArray, k: int = K) -> PrecisionRecall:
    """Both depend on the number of images: compare only scores of as many.

    Args:
        generated: Features [N, D].
        real: Features [M, D].
        k: Neighbours.

    Raises:
        ValueError: fewer than k + 1 images, or other features on one side.
    """
    if min(len(generated), len(real)) <= k:
        raise ValueError(f"precision and recall with k = {k} neighbours take at least {k + 1} images of each kind")
    return PrecisionRecall(_share_within(generated, real, k), _share_within(real, generated, k))


def _share_within(points: npt.NDArray, centers: npt.NDArray, k: int) -> float:
    """Share of points within a ball of any center."""
    radii = nearest_other(centers, np.arange(len(centers)), k)
    inside = [(distances <= radii).any(axis=1) for _, distances in distance_blocks(points, centers)]
    return float(np.concatenate(inside).mean())
