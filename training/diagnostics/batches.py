"""Batches for measurements: the same images, noise levels and noise every time, so that a curve shows the network.

Their random numbers come from generators of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edm2.training.data.batches import Batch, BatchStream
from edm2.training.diagnostics.holdout import evenly_spaced
from edm2.training.loss.noise import NoiseDistribution, levels


@dataclass(frozen=True)
class ProbeBatch:
    """Images y with labels and conditions, noise levels sigma [N] and unit noise n shaped like the images."""

    batch: Batch
    sigma: Tensor
    noise: Tensor

    @property
    def noisy(self) -> Tensor:
        """y + sigma n."""
        return self.batch.images + self.sigma.reshape(-1, 1, 1, 1) * self.noise

    def split(self, size: int) -> Iterator["ProbeBatch"]:
        """Parts of at most `size` images."""
        for i in range(0, len(self.sigma), size):
            part = slice(i, i + size)
            yield ProbeBatch(self.batch.slice(i, i + size), self.sigma[part], self.noise[part])


def spaced_images(stream: BatchStream, count: int) -> Batch:
    """At most `count` training images, evenly spaced over the dataset, which may be sorted by class."""
    return stream.all_of(evenly_spaced(stream.train_set, count))


def over_all_levels(batch: Batch, distribution: NoiseDistribution) -> ProbeBatch:
    """Each image at a noise level from another stratum of the distribution."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(batch.images), generator=generator)
    return _with_noise(batch, levels(distribution, len(order))[order], generator)


def by_bin(batch: Batch, distribution: NoiseDistribution, bins: int) -> dict[float, ProbeBatch]:
    """Batch of each of `bins` equally probable bins, by its median: each image, spread over the noise levels within.

    Images and their noise are the same in every bin, so bins differ by their noise levels only.
    """
    medians = levels(distribution, bins).tolist()
    sigma = levels(distribution, bins * len(batch.images)).reshape(bins, -1)
    batches = [_with_noise(batch, row, torch.Generator().manual_seed(0)) for row in sigma]
    return dict(zip(medians, batches, strict=True))


def _with_noise(batch: Batch, sigma: Tensor, generator: torch.Generator) -> ProbeBatch:
    noise, device = torch.randn(batch.images.shape, generator=generator), batch.images.device
    return ProbeBatch(batch, sigma.float().to(device), noise.to(device))
