"""Whether samples repeat training images: the closest ones to each sample, and how close is too close.

A sample is suspicious if it is nearer to a training image than that image's own nearest neighbour in the training set:
it is then more like it than anything else that was there to learn from. Some of that is chance. A set of real images
that were not trained on tells how much (arXiv 2306.04675 compares in this way).
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
    """What is nearest to samples among training images; distances are those of features."""

    indices: npt.NDArray[np.int64]
    """Of the closest training images, nearest first, [N, k]."""
    distances: npt.NDArray[np.float64]
    """To them, [N, k]."""
    own: npt.NDArray[np.float64]
    """Of the closest training image to its own nearest neighbour among training images, [N]."""

    @property
    def ratios(self) -> npt.NDArray[np.float64]:
        """Distance to the closest training image as a share of that image's own, [N]; below 1 is suspicious.

        An image that is there twice has its nearest neighbour at 0: infinite, or 1 for another copy of it.
        """
        nearest_distance = self.distances[:, 0]
        equal = nearest_distance == self.own
        return np.divide(nearest_distance, self.own, out=np.where(equal, 1.0, np.inf), where=self.own > 0)

    @property
    def share(self) -> float:
        """Share of samples that are nearer to a training image than that image's own nearest neighbour."""
        return float(np.mean(self.distances[:, 0] < self.own))

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """Samples by suspicion, the most suspicious first."""
        return np.argsort(self.ratios, kind="stable")


def find_neighbours(samples: npt.NDArray, training: npt.NDArray, k: int = 5) -> Neighbours:
    """Find the k closest training images of every sample.

    Args:
        samples: Features [N, D].
        training: Features of all training images [M, D].
        k: How many.

    Raises:
        ValueError: fewer than two training images, or other features on one side.
    """
    if len(training) < 2:
        raise ValueError("a training set of one image has no neighbours to compare with")
    indices, distances = nearest(samples, training, k)
    return Neighbours(indices, distances, nearest_other(training, indices[:, 0]))


def neighbours_picture(samples: Dataset, training: Dataset, found: Neighbours, rows: int = 16) -> Tensor:
    """The most suspicious samples, each on a row of its own: the sample, then its closest training images.

    Images of other sizes and channels than the samples' are brought to theirs.

    Returns:
        uint8 [C, H, W].
    """
    chosen = found.order[:rows]
    drawn = displayed(samples, chosen)
    closest = [_like(displayed(training, indices), drawn) for indices in found.indices[chosen]]
    lines = [torch.cat([sample[None], images]) for sample, images in zip(drawn, closest, strict=True)]
    scale = max(1, 64 // max(drawn.shape[-2:]))
    return image_grid(torch.cat(lines), columns=len(lines[0]), scale=scale, gap=2 * scale)


def _like(images: Tensor, others: Tensor) -> Tensor:
    """Images in the size and with the channels of others."""
    if images.shape[-2:] != others.shape[-2:]:
        images = torch.nn.functional.interpolate(images.float(), others.shape[-2:], mode="bicubic", antialias=True)
        images = images.round().clip(0, 255).to(torch.uint8)
    if images.shape[1] == others.shape[1]:
        return images
    gray = images.float().mean(dim=1, keepdim=True).round().to(torch.uint8)
    return gray.expand(-1, others.shape[1], -1, -1)
