"""Weighting of the denoiser's squared error across noise levels (arXiv 2312.02696v2, Eqs. 14, 16 and 21).

A weighting maps squared error, noise level and the network's uncertainty u(sigma) to a loss per element. Static ones
multiply by a function lambda(sigma). The same lambda means something else on whatever else a network may predict: with
SNR = sd² / sigma², sd the standard deviation of the data, and all errors measured where the data has unit variance,

    on x0, that is on D / sd      w = sd² lambda
    on the noise eps              w / SNR
    on the velocity v             w / (1 + SNR)
    on the raw output F           w / (1 + SNR), called w_F here: what F should be is -v

snr.py has the functions of SNR that other papers proposed, docs/weightings.md compares them.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from edm2.training.loss.noise import NoiseDistribution, levels

LEVELS = 10_000
"""Noise levels over which the mean of a weighting is taken."""

FARTHEST = 6.0
"""Largest standard normal number in training, but for one in a billion."""


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) = (sigma² + sd²) / (sigma sd)² (Eq. 16): unit weight on the raw output F at every level."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


class Weighting(Protocol):
    """Loss from squared errors."""

    @property
    def uses_uncertainty(self) -> bool:
        """True if the loss depends on u(sigma); if not, the network is not asked for it."""
        ...

    def __call__(self, squared_error: Tensor, sigma: Tensor, u: Any, sigma_data: float) -> Tensor:
        """Loss per element.

        Args:
            squared_error: (D - y)², [N, C, H, W].
            sigma: Noise level, [N, 1, 1, 1].
            u: Uncertainty u(sigma) of the network, [N, 1, 1, 1]; None unless `uses_uncertainty`.
            sigma_data: Standard deviation of the data.
        """
        ...


@dataclass(frozen=True)
class Uncertainty:
    """lambda(sigma) / e^u (D - y)² + u (Eq. 21), with EDM's lambda.

    At its optimum u = ln E[lambda (D - y)²], so all levels weigh the same: the network gets the gradient of
    ln E[(D - y)²], on D, eps, x0, v and F alike. The lambda cancels, and so would any other.
    """

    uses_uncertainty: ClassVar[bool] = True

    def __call__(self, squared_error: Tensor, sigma: Tensor, u: Tensor, sigma_data: float) -> Tensor:
        """lambda / e^u (D - y)² + u."""
        return edm_weight(sigma, sigma_data) / torch.exp(u) * squared_error + u


@dataclass(frozen=True)
class StaticWeighting(ABC):
    """lambda(sigma) (D - y)², without learned uncertainty."""

    uses_uncertainty: ClassVar[bool] = False

    @abstractmethod
    def log_weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """ln lambda(sigma), in which no power of a signal-to-noise ratio overflows. Shape and dtype of `sigma`."""

    def weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """lambda(sigma). Shape and dtype of `sigma`."""
        return self.log_weight(sigma, sigma_data).exp()

    def __call__(self, squared_error: Tensor, sigma: Tensor, u: Tensor | None, sigma_data: float) -> Tensor:
        """lambda (D - y)²."""
        return self.weight(sigma, sigma_data) * squared_error


@dataclass(frozen=True)
class EDM(StaticWeighting):
    """lambda(sigma) = (sigma² + sd²) / (sigma sd)² (Eqs. 14 and 16): the weighting of EDM, without uncertainty.

    Weight (1 + SNR) / SNR on eps, 1 + SNR on x0, 1 on v and on F.
    """

    def log_weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """ln lambda(sigma)."""
        return edm_weight(sigma, sigma_data).log()

    def weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """lambda(sigma), without rounding by a logarithm."""
        return edm_weight(sigma, sigma_data)


@dataclass(frozen=True)
class Scaled(StaticWeighting):
    """A static weighting times a constant.

    Args:
        weighting: The static weighting.
        log_scale: ln of the constant.
    """

    weighting: StaticWeighting
    log_scale: float

    def log_weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """ln lambda(sigma)."""
        return self.weighting.log_weight(sigma, sigma_data) + self.log_scale


@dataclass(frozen=True)
class Relative:
    """A static weighting on top of learned uncertainty instead of in its place.

        loss = w_rel r + u,    r = lambda(sigma) / e^u (D - y)²,    w_rel(sigma) = w_F(sigma)

    with EDM's lambda, and u trained as if w_rel were 1: otherwise it would cancel w_rel. So e^u = E[lambda (D - y)²]
    evens out the levels, and then each of them counts w_rel times. With w_rel = 1 this is `Uncertainty`.

    Args:
        weighting: Its weight on the raw output F is w_F. Usually `normalized`, so that the mean of w_F is 1.
    """

    weighting: StaticWeighting
    uses_uncertainty: ClassVar[bool] = True

    def __call__(self, squared_error: Tensor, sigma: Tensor, u: Tensor, sigma_data: float) -> Tensor:
        """w_rel r + u; the gradient of u is that of r + u."""
        w_rel = (self.weighting.log_weight(sigma, sigma_data) - edm_weight(sigma, sigma_data).log()).exp()
        even = edm_weight(sigma, sigma_data) / torch.exp(u.detach()) * squared_error
        return Uncertainty()(squared_error, sigma, u, sigma_data) + (w_rel - 1) * even


def normalized(weighting: StaticWeighting, distribution: NoiseDistribution, sigma_data: float) -> StaticWeighting:
    """Scale `weighting` so that its mean weight on the raw output F is 1: E[w_F] = 1 over the noise levels.

    The scale of a gradient then does not depend on the weighting's name or parameters.

    Raises:
        ValueError: the weighting has no mean: it is zero everywhere, or not finite.
    """
    if isinstance(weighting, EDM):
        return weighting  # w_F = 1 at every level
    sigma = levels(distribution, LEVELS)
    log_w_F = weighting.log_weight(sigma, sigma_data) - edm_weight(sigma, sigma_data).log()
    log_mean = (log_w_F.logsumexp(0) - math.log(len(sigma))).item()
    if not math.isfinite(log_mean):
        raise ValueError(f"{weighting} is zero or not finite on average over {distribution}")
    return Scaled(weighting, -log_mean)


def check_range(weighting: StaticWeighting, distribution: NoiseDistribution, sigma_data: float) -> None:
    """Check the weighting in float32, at all noise levels of training.

    Raises:
        ValueError: it is not finite somewhere, or zero everywhere.
    """
    sigma = distribution.sigma(torch.linspace(-FARTHEST, FARTHEST, 1001))
    weight = weighting.weight(sigma, sigma_data)
    finite = weight.isfinite()
    if not finite.all():
        raise ValueError(f"weighting {weighting} is not finite at noise level {sigma[~finite][0]:.3g}")
    if not weight.any():
        raise ValueError(f"weighting {weighting} is zero at every noise level")
