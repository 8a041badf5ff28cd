"""Training images closest to each sample, and how close is too close.

A sample is suspicious if it is nearer to a training image than that image's own nearest neighbour in the training set:
it is then more like that image than any other training image is. Some of that is chance. A set of real images that
were not trained on shows how much (arXiv 2306.04675 compares in this way).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edm2.io.images import image_grid
from edm2.metrics.distances import nearest, nearest_other
from edm2.metrics.features import displayed
from edm2.training import Dataset


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

    Raises:
        ValueError: fewer than two training images, or features of different lengths.
    """
    if len(training) < 2:
        raise ValueError("a training set of one image has no neighbours to compare with")
    indices, distances = nearest(samples, training, k)
    return Neighbours(indices, distances, nearest_other(training, indices[:, 0]))


def neighbours_picture(samples: Dataset, training: Dataset, found: Neighbours, rows: int = 16) -> Tensor:
    """Draw the most suspicious samples, each on a row of its own: the sample, then its closest training images.

    Training images are brought to the size and channels of the samples.

    Returns:
        uint8 [C, H, W].
    """
    chosen = found.order[:rows].tolist()
    drawn = displayed(samples, chosen)
    closest = [_like(displayed(training, indices), drawn) for indices in found.indices[chosen].tolist()]
    lines = [torch.cat([sample[None], images]) for sample, images in zip(drawn, closest, strict=True)]
    scale = max(1, 64 // max(drawn.shape[-2:]))
    return image_grid(torch.cat(lines), columns=len(lines[0]), scale=scale, gap=2 * scale)


def _like(images: Tensor, others: Tensor) -> Tensor:
    """Resize images to the size of others, and give them as many channels."""
    if images.shape[-2:] != others.shape[-2:]:
        images = torch.nn.functional.interpolate(images.float(), others.shape[-2:], mode="bicubic", antialias=True)
        images = images.round().clip(0, 255).to(torch.uint8)
    if images.shape[1] == others.shape[1]:
        return images
    gray = images.float().mean(dim=1, keepdim=True).round().to(torch.uint8)
    return gray.expand(-1, others.shape[1], -1, -1)
