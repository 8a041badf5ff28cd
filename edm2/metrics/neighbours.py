"""Training images closest to each sample, and how close is too close.

A sample is suspicious if it is nearer to a training image than that image's own nearest neighbour in the training set:
it is then more like that image than any other training image is. Some of that is chance. A set of real images that
were not trained on shows how much (arXiv 2306.04675 compares in this way).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edm2.metrics.distances import nearest, nearest_other


@dataclass(frozen=True)
class Neighbours:
    """Training images nearest to samples, by distances of features."""

    indices: npt.NDArray[np.int64]
    """Indices of the closest training images, nearest first, [N, k]."""
    distances: npt.NDArray[np.float64]
    """Distances to these images, [N, k]."""
    own: npt.NDArray[np.float64]
    """Distance of the closest training image to its own nearest neighbour among training images, [N]."""

    @property
    def ratios(self) -> npt.NDArray[np.float64]:
        """Distance to the closest training image divided by that image's `own`, [N]; below 1 is suspicious.

        An image that occurs twice has its nearest neighbour at 0: infinite, or 1 for another copy of it.
        """
        nearest_distance = self.distances[:, 0]
        equal = nearest_distance == self.own
        return np.divide(nearest_distance, self.own, out=np.where(equal, 1.0, np.inf), where=self.own > 0)

    @property
    def fraction(self) -> float:
        """Fraction of samples that are nearer to a training image than that image's own nearest neighbour."""
        return float(np.mean(self.distances[:, 0] < self.own))

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """Indices of the samples, the most suspicious first."""
        return np.argsort(self.ratios, kind="stable")


def find_neighbours(samples: npt.NDArray, training: npt.NDArray, k: int = 5) -> Neighbours:
    """Find the k closest training images of every sample.

    Args:
        samples: Features [N, D].
        training: Features of all training images [M, D].
        k: Training images per sample.
    """
    if len(training) < 2:
        raise ValueError("a training set of one image has no neighbours to compare with")
    indices, distances = nearest(samples, training, k)
    return Neighbours(indices, distances, nearest_other(training, indices[:, 0]))
