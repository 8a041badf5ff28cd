"""The training objective: denoise at a random noise level (arXiv 2312.02696v2, Eqs. 14, 15 and 21)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edm2.training.loss.noise import LnNormal, NoiseDistribution
from edm2.training.loss.weighting import Uncertainty, Weighting, edm_weight

UNCERTAINTY = Uncertainty()
"""The default weighting."""


@dataclass(frozen=True)
class DenoisingLoss:
    """Weighted squared error of a denoiser at random noise levels.

        loss = weighting((D(y + sigma n; sigma) - y)²),    n ~ N(0, I)

    Args:
        distribution: Distribution of the noise levels sigma.
        sigma_data: Standard deviation of the data y.
        weighting: Loss from squared errors.
    """

    distribution: NoiseDistribution
    sigma_data: float
    weighting: Weighting

    def __call__(
        self,
        net: Callable[..., Any],
        images: Tensor,
        labels: Tensor | None = None,
        *,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
        conditions: Mapping[str, Tensor | None] | None = None,
        context: Any = None,
    ) -> Tensor:
        """Loss per element (Eq. 14).

        Args:
            net: Denoiser, called as net(noisy, sigma, labels) with sigma [N, 1, 1, 1]; with return_logvar=True if the
                weighting uses u(sigma), and with conditions=... if there are any.
            images: Clean data y, [N, C, H, W].
            labels: Classes in any form that `net` takes.
            sigma: Noise levels [N]; drawn if not given.
            noise: Unit Gaussian noise shaped like `images`; drawn if not given.
            conditions: Other conditions by name, for `net`.
            context: Given by a trainer, to report the `errors` to.

        Returns:
            [N, C, H, W]. Training minimizes its sum over all elements divided by the number of images.
        """
        if sigma is None:  # Eq. 15
            sigma = self.distribution.sigma(torch.randn(len(images), device=images.device, dtype=images.dtype))
        if noise is None:
            noise = torch.randn_like(images)
        sigma = sigma.reshape(-1, 1, 1, 1)  # [N, 1, 1, 1]
        noisy = images + sigma * noise
        given = {} if conditions is None else {"conditions": conditions}
        if self.weighting.uses_uncertainty:
            denoised, u = net(noisy, sigma, labels, return_logvar=True, **given)
        else:
            denoised, u = net(noisy, sigma, labels, **given), None
        squared_error = (denoised - images) ** 2
        if context is not None:
            error, error_of_zero = errors(squared_error.detach(), noisy, images, sigma, self.sigma_data)
            context.report("error", error)
            context.report("error_of_zero", error_of_zero)
        return self.weighting(squared_error, sigma, u, self.sigma_data)  # Eq. 21


class EDM2Loss(DenoisingLoss):
    """The paper's loss: ln sigma ~ N(P_mean, P_std²) (Eq. 15), weighted by learned uncertainty (Eq. 21).

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


def errors(
    squared_error: Tensor, noisy: Tensor, images: Tensor, sigma: Tensor, sigma_data: float
) -> tuple[Tensor, Tensor]:
    """Error on the raw output F, and that of a network whose output is F = 0.

        mean λ (D - y)²        mean λ (c_skip x - y)²

    with EDM's λ (Eq. 16). Their ratio is 1 for a network that has learned nothing, whatever the data and the noise
    levels; both are means, so that those of a batch are the averages over its parts.

    Args:
        squared_error: (D - y)², [N, C, H, W].
        noisy: x, likewise.
        images: y, likewise.
        sigma: Noise levels, [N, 1, 1, 1].
        sigma_data: Standard deviation of the data y.

    Returns:
        Both 0-dimensional.
    """
    weight = edm_weight(sigma, sigma_data)
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    return (weight * squared_error).mean(), (weight * (c_skip * noisy - images) ** 2).mean()
