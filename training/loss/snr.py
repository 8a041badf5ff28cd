"""Static weightings that are functions of the signal-to-noise ratio, as papers on diffusion have proposed them.

Each class states its weight w on x0 and what that is on eps and on v; see weighting.py for how they relate, and for F.
They are written for data of unit variance, in ln SNR, where nothing overflows. For data of standard deviation sd,
SNR = sd² / sigma² and lambda = w / sd²: the *normalized* convention. `InDataUnits` takes the papers' code literally.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from edm2.training.loss.weighting import StaticWeighting


def _ln(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _ln_sum(log_snr: Tensor, x: float) -> Tensor:
    """ln(SNR + x)."""
    return torch.logaddexp(log_snr, torch.full_like(log_snr, _ln(x)))


@dataclass(frozen=True)
class SNRWeighting(StaticWeighting):
    """A function of the signal-to-noise ratio.

    Raises:
        ValueError: a parameter is negative or not finite.
    """

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value:g} of the weighting must be a finite number, at least 0")

    @abstractmethod
    def log_w(self, log_snr: Tensor) -> Tensor:
        """ln of the weight on the squared error of x0, at ln SNR, for data of unit variance."""

    def log_weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """ln lambda(sigma), with lambda = w(SNR) / sd² and SNR = sd² / sigma²."""
        log_sd = math.log(sigma_data)
        return self.log_w(2 * (log_sd - sigma.log())) - 2 * log_sd


@dataclass(frozen=True)
class Eps(SNRWeighting):
    """w = SNR: constant weight on eps, the L_simple of DDPM (Ho et al. 2020, arXiv 2006.11239, Eq. 14).

    1 on eps, SNR / (1 + SNR) on v and F. lambda = 1 / sigma².
    """

    def log_w(self, log_snr: Tensor) -> Tensor:
        """ln SNR."""
        return log_snr


@dataclass(frozen=True)
class Constant(SNRWeighting):
    """w = 1: constant weight on x0.

    1 / SNR on eps, 1 / (1 + SNR) on v and F. lambda = 1 / sd².
    """

    def log_w(self, log_snr: Tensor) -> Tensor:
        """ln 1 = 0."""
        return torch.zeros_like(log_snr)


@dataclass(frozen=True)
class V(SNRWeighting):
    """w = 1 + SNR: constant weight on the velocity (Salimans and Ho 2022, arXiv 2202.00512, "SNR+1").

    (1 + SNR) / SNR on eps, 1 on v and F: in the normalized convention it is `EDM`.
    """

    def log_w(self, log_snr: Tensor) -> Tensor:
        """ln(1 + SNR)."""
        return _ln_sum(log_snr, 1)


@dataclass(frozen=True)
class MaxSNR(SNRWeighting):
    """w = max(SNR, gamma), with gamma = 1 the "truncated SNR" of Salimans and Ho 2022 (arXiv 2202.00512).

    max(1, gamma / SNR) on eps, max(SNR, gamma) / (1 + SNR) on v and F.

    Args:
        gamma: SNR below which the weight on x0 does not fall further.
    """

    gamma: float = 1.0

    def log_w(self, log_snr: Tensor) -> Tensor:
        """ln max(SNR, gamma)."""
        return log_snr.clamp(min=_ln(self.gamma))


@dataclass(frozen=True)
class MinSNR(SNRWeighting):
    """w = min(SNR, gamma): Min-SNR-gamma (Hang et al. 2023, arXiv 2303.09556, Section 3.4).

    min(1, gamma / SNR) on eps, min(SNR, gamma) / (1 + SNR) on v and F.

    Args:
        gamma: SNR above which the weight on x0 does not rise further.
    """

    gamma: float = 5.0

    def log_w(self, log_snr: Tensor) -> Tensor:
        """ln min(SNR, gamma)."""
        return log_snr.clamp(max=_ln(self.gamma))


@dataclass(frozen=True)
class SoftMinSNR(SNRWeighting):
    """w = gamma SNR / (SNR + gamma): Min-SNR without its corner (Crowson et al. 2024, arXiv 2401.11605, HDiT).

    gamma / (SNR + gamma) on eps, gamma SNR / ((SNR + gamma)(1 + SNR)) on v and F. A constant times P2(gamma, 1).

    Args:
        gamma: Limit of the weight on x0 at high SNR.
    """

    gamma: float = 5.0

    def log_w(self, log_snr: Tensor) -> Tensor:
        """ln(gamma SNR / (SNR + gamma))."""
        return _ln(self.gamma) + log_snr - _ln_sum(log_snr, self.gamma)


@dataclass(frozen=True)
class P2(SNRWeighting):
    """w = SNR / (k + SNR)^gamma: perception prioritized (Choi et al. 2022, arXiv 2204.00227, Eq. 8).

    1 / (k + SNR)^gamma on eps, SNR / ((1 + SNR)(k + SNR)^gamma) on v and F. gamma = 0 is `Eps`.

    Args:
        k: Bounds the weight on eps at high noise; the paper uses 1.
        gamma: Lowers the weight at high SNR, that is of the last clean-up; the paper uses 0.5 and 1.
    """

    k: float = 1.0
    gamma: float = 1.0

    def log_w(self, log_snr: Tensor) -> Tensor:
        """ln(SNR / (k + SNR)^gamma)."""
        return log_snr - self.gamma * _ln_sum(log_snr, self.k)


@dataclass(frozen=True)
class InDataUnits(StaticWeighting):
    """A weighting in the *data* convention: SNR = 1 / sigma² and lambda = w, whatever the data's standard deviation.

    The papers' code does so, on pixels from -1 to 1 as on latents. Up to a constant it is the normalized
    convention with k sd² and gamma sd² for k of P2 and gamma of Min-, Max- and Soft-Min-SNR. P2's gamma, an exponent,
    stays.

    Args:
        weighting: Written for data of unit variance.
    """

    weighting: SNRWeighting

    def log_weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """ln w(1 / sigma²)."""
        return self.weighting.log_weight(sigma, 1.0)
