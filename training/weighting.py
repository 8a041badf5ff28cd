"""How the squared error of the denoiser is weighted across noise levels (arXiv 2312.02696v2, Eqs. 14 and 21).

A weighting maps squared error, noise level and the network's uncertainty u(sigma) to a loss per element.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) = (sigma² + sd²) / (sigma sd)² (Eq. 16): unit weight on the raw output F at every level."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


class Weighting(Protocol):
    """Turns squared errors into a loss."""

    def __call__(self, squared_error: Tensor, sigma: Tensor, u: Tensor, sigma_data: float) -> Tensor:
        """Loss per element.

        Args:
            squared_error: (D - y)², [N, C, H, W].
            sigma: Noise level, [N, 1, 1, 1].
            u: Uncertainty u(sigma) of the network, [N, 1, 1, 1].
            sigma_data: Standard deviation of the data.
        """
        ...


@dataclass(frozen=True)
class Uncertainty:
    """lambda(sigma) / e^u (D - y)² + u (Eq. 21). At its optimum u = ln E[lambda (D - y)²], so all levels
    weigh the same."""

    def __call__(self, squared_error: Tensor, sigma: Tensor, u: Tensor, sigma_data: float) -> Tensor:
        """See `Weighting`."""
        return edm_weight(sigma, sigma_data) / torch.exp(u) * squared_error + u


@dataclass(frozen=True)
class EDM:
    """lambda(sigma) (D - y)² (Eq. 14): the weighting of EDM, without learned uncertainty."""

    def __call__(self, squared_error: Tensor, sigma: Tensor, u: Tensor, sigma_data: float) -> Tensor:
        """See `Weighting`."""
        return edm_weight(sigma, sigma_data) * squared_error
