"""Loss per noise level on images that are not trained on, which falls while the network generalizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from edm2.networks import Precond
from edm2.training.data.batches import Batch
from edm2.training.data.dataset import Dataset, Subset, evenly_spaced_indices
from edm2.training.loss.noise import NoiseDistribution
from edm2.training.loss.weighting import edm_weight

NOISE_QUANTILES = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
"""Standard normal numbers, from which the distribution of training makes the noise levels that are measured."""

FREQUENCIES = np.diff([NormalDist().cdf(z) for z in (-np.inf, *np.arange(-1.75, 2, 0.5), np.inf)])
"""Probabilities in training of the noise levels that are nearest to each of these."""


@dataclass(frozen=True)
class LossPerLevel:
    """Loss lambda(sigma) (D - y)² per element, averaged over images, at fixed noise levels.

    At initialization, where D = c_skip x, it is 1 at every level for data of standard deviation sigma_data.
    """

    sigmas: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))

    def error(self, mean_square: float, sigma_data: float) -> float:
        """Average over the levels as often as training meets them; 1 for a network that outputs nothing, D = c_skip x.

            lambda(sigma) E|c_skip x - y|² = (sigma² E y² / sigma_data² + sigma_data²) / (sigma² + sigma_data²)

        Args:
            mean_square: E y² of the images.
            sigma_data: Standard deviation that the network expects.
        """
        variance = np.square(self.sigmas)
        of_zero = (variance * mean_square / sigma_data**2 + sigma_data**2) / (variance + sigma_data**2)
        return float(FREQUENCIES @ self.losses / (FREQUENCIES @ of_zero))


def evenly_spaced(dataset: Dataset, count: int) -> Subset:
    """At most `count` images spread over a dataset, which may be sorted by class."""
    return Subset(dataset, evenly_spaced_indices(len(dataset), count))


def with_shuffled_conditions(batch: Batch) -> Batch:
    """Each image with the conditions of another: a network that uses them loses by it."""
    shift = max(1, len(batch.images) // 2)  # far away, as a dataset may be sorted
    shuffled = {name: values.roll(shift, dims=0) for name, values in (batch.conditions or {}).items()}
    return batch._replace(conditions=shuffled)


def measure_loss(net: Precond, batch: Batch, distribution: NoiseDistribution, batch_size: int) -> LossPerLevel:
    """`loss_at_levels` at fixed quantiles of the noise levels in training."""
    sigmas = distribution.sigma(torch.tensor(NOISE_QUANTILES, dtype=torch.float64)).tolist()
    return loss_at_levels(net, batch, sigmas, batch_size)


@torch.no_grad()
def loss_at_levels(net: Precond, batch: Batch, sigmas: Sequence[float], batch_size: int) -> LossPerLevel:
    """Loss of `net` on some images at the noise levels `sigmas`; the same noise at every level and every call.

    Args:
        net: Denoiser, used as it is: call `eval()` first.
        batch: Clean data [N, C, H, W] on the network's device, with labels and conditions.
        batch_size: Images per forward pass.
    """
    images = batch.images
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    losses = []
    for sigma in sigmas:
        weight = edm_weight(torch.tensor(sigma, dtype=torch.float64), net.sigma_data).item()
        total = 0.0
        for i in range(0, len(images), batch_size):
            part = batch.slice(i, i + batch_size)
            denoised = net(part.images + sigma * noise[i : i + batch_size], sigma, part.labels, **part.given)
            total += (denoised - part.images).square().sum().item()
        losses.append(weight * total / images.numel())
    return LossPerLevel(tuple(sigmas), tuple(losses))
