"""The training objective: denoise at a random noise level (arXiv 2312.02696v2, Eqs. 14, 15 and 21)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edm2.training.loss.noise import LnNormal, NoiseDistribution
from edm2.training.loss.weighting import Uncertainty, Weighting, edm_weight

UNCERTAINTY = Uncertainty()
"""The default weighting."""

HALF_STEP = 2.0**-25
"""Half of the distance between float32 uniform numbers: added to them, it keeps 0 out and 1 out."""


@dataclass(frozen=True)
class DenoisingLoss:
    """Loss of a denoiser at random noise levels.

        loss = weighting((D(y + sigma n; sigma) - y)²),    n ~ N(0, I)

    Args:
        distribution: Where noise levels sigma come from.
        sigma_data: Standard deviation of the data y.
        weighting: Loss from squared errors.
    """

    distribution: NoiseDistribution
    sigma_data: float
    weighting: Weighting

    def sigma_from_normal(self, normal: Tensor) -> Tensor:
        """Standard normal numbers -> noise levels."""
        return self.distribution.sigma(normal)

    def __call__(
        self,
        net: Callable[..., tuple[Tensor, Tensor]],
        images: Tensor,
        labels: Tensor | None = None,
        *,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Loss per element.

        Args:
            net: Denoiser, called as net(noisy, sigma, labels, return_logvar=True).
            images: Clean data y, [N, C, H, W].
            labels: Classes in any form that `net` takes.
            sigma: Noise levels [N]; drawn if not given.
            noise: Unit Gaussian noise shaped like `images`; drawn if not given.

        Returns:
            [N, C, H, W]. Training minimizes its sum over all elements divided by the number of images.
        """
        if sigma is None:
            sigma = self.sigma_from_normal(torch.randn(len(images), device=images.device, dtype=images.dtype))
        if noise is None:
            noise = torch.randn_like(images)
        return self.loss_and_error(net, images, labels, sigma, noise)[0]

    def loss_and_error(
        self,
        net: Callable[..., tuple[Tensor, Tensor]],
        images: Tensor,
        labels: Tensor | None,
        sigma: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss, and how good the network is whatever the weighting; arguments as above.

        Returns:
            (loss per element [N, C, H, W], `relative_error` of all images).
        """
        sigma = sigma.reshape(-1, 1, 1, 1)
        noisy = images + sigma * noise
        denoised, u = net(noisy, sigma, labels, return_logvar=True)
        squared_error = (denoised - images) ** 2
        return (
            self.weighting(squared_error, sigma, u, self.sigma_data),
            relative_error(squared_error.detach(), noisy, images, sigma, self.sigma_data),
        )


class EDM2Loss(DenoisingLoss):
    """The paper's: ln sigma ~ N(P_mean, P_std²) (Eq. 15), weighted by learned uncertainty (Eq. 21).

    Args:
        P_mean: Mean of ln sigma.
        P_std: Standard deviation of ln sigma.
        sigma_data: Standard deviation of the data y.
        weighting: Loss from squared errors.
    """

    def __init__(
        self,
        P_mean: float = -0.4,
        P_std: float = 1.0,
        sigma_data: float = 0.5,
        weighting: Weighting = UNCERTAINTY,
    ) -> None:
        super().__init__(LnNormal(P_mean, P_std), sigma_data, weighting)


def relative_error(squared_error: Tensor, noisy: Tensor, images: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Error on the raw output F, as a multiple of that of a network whose output is F = 0.

        sum lambda (D - y)² / sum lambda (c_skip x - y)²

    with EDM's lambda (Eq. 16): 1 for a network that has learned nothing, whatever the data and the noise levels.

    Args:
        squared_error: (D - y)², [N, C, H, W].
        noisy: x, shaped like it.
        images: y, likewise.
        sigma: Noise levels, [N, 1, 1, 1].
        sigma_data: Standard deviation of the data y.

    Returns:
        0-dimensional.
    """
    weight = edm_weight(sigma, sigma_data)
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    return (weight * squared_error).sum() / (weight * (c_skip * noisy - images) ** 2).sum()


def stratified_normal(first_place: int, uniform: Tensor, strata: int) -> Tensor:
    """Standard normal numbers of which each block of `strata` places has one in every stratum of equal probability.

        normal = Phi⁻¹((p mod B + U) / B)

    with B strata and p the place. Each number for itself is N(0, 1), if U is uniform.

    Args:
        first_place: Place p of the first number.
        uniform: U in [0, 1) of consecutive places, float32 [N].
        strata: B, usually the images per step.

    Returns:
        float32 [N] on the device of `uniform`.
    """
    device = uniform.device
    if device.type == "mps":  # has no float64
        uniform = uniform.cpu()
    stratum = torch.arange(first_place, first_place + len(uniform), device=uniform.device) % strata
    quantile = (stratum + uniform.double() + HALF_STEP) / strata
    return torch.special.ndtri(quantile).float().to(device)
