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


def _check(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value:g} of the weighting must be a finite number, at least 0")


@dataclass(frozen=True)
class SNRWeighting(StaticWeighting):
    """A function of the signal-to-noise ratio."""

    @abstractmethod
    def log_w(self, log_snr: Tensor) -> Tensor:
        """ln of the weight on the squared error of x0, at ln SNR, for data of unit variance."""

    def log_weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """lambda = w(SNR) / sd² with SNR = sd² / sigma²; see `StaticWeighting`."""
        log_sd = math.log(sigma_data)
        return self.log_w(2 * (log_sd - sigma.log())) - 2 * log_sd


@dataclass(frozen=True)
class Eps(SNRWeighting):
    """w = SNR: constant weight on eps, the L_simple of DDPM (Ho et al. 2020, arXiv 2006.11239, Eq. 14).

    1 on eps, SNR / (1 + SNR) on v and F. lambda = 1 / sigma².
    """

    def log_w(self, log_snr: Tensor) -> Tensor:
        """See `SNRWeighting`."""
        return log_snr


@dataclass(frozen=True)
class Constant(SNRWeighting):
    """w = 1: constant weight on x0.

    1 / SNR on eps, 1 / (1 + SNR) on v and F. lambda = 1 / sd².
    """

    def log_w(self, log_snr: Tensor) -> Tensor:
        """See `SNRWeighting`."""
        return torch.zeros_like(log_snr)


@dataclass(frozen=True)
class V(SNRWeighting):
    """w = 1 + SNR: constant weight on the velocity (Salimans and Ho 2022, arXiv 2202.00512, "SNR+1").

    (1 + SNR) / SNR on eps, 1 on v and F: in the normalized convention it is `EDM`.
    """

    def log_w(self, log_snr: Tensor) -> Tensor:
        """See `SNRWeighting`."""
        return _ln_sum(log_snr, 1)


@dataclass(frozen=True)
class MaxSNR(SNRWeighting):
    """w = max(SNR, gamma), with gamma = 1 the "truncated SNR" of Salimans and Ho 2022 (arXiv 2202.00512).

    max(1, gamma / SNR) on eps, max(SNR, gamma) / (1 + SNR) on v and F.

    Args:
        gamma: SNR below which the weight on x0 does not fall further.

    Raises:
        ValueError: gamma is negative or not finite.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        _check("gamma", self.gamma)

    def log_w(self, log_snr: Tensor) -> Tensor:
        """See `SNRWeighting`."""
        return log_snr.clamp(min=_ln(self.gamma))


@dataclass(frozen=True)
class MinSNR(SNRWeighting):
    """w = min(SNR, gamma): Min-SNR-gamma (Hang et al. 2023, arXiv 2303.09556, Section 3.4).

    min(1, gamma / SNR) on eps, min(SNR, gamma) / (1 + SNR) on v and F.

    Args:
        gamma: SNR above which the weight on x0 does not rise further.

    Raises:
        ValueError: gamma is negative or not finite.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check("gamma", self.gamma)

    def log_w(self, log_snr: Tensor) -> Tensor:
        """See `SNRWeighting`."""
        return log_snr.clamp(max=_ln(self.gamma))


@dataclass(frozen=True)
class SoftMinSNR(SNRWeighting):
    """w = gamma SNR / (SNR + gamma): Min-SNR without its corner (Crowson et al. 2024, arXiv 2401.11605, HDiT).

    gamma / (SNR + gamma) on eps, gamma SNR / ((SNR + gamma)(1 + SNR)) on v and F. A constant times P2(gamma, 1).

    Args:
        gamma: What the weight on x0 approaches at high SNR.

    Raises:
        ValueError: gamma is negative or not finite.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check("gamma", self.gamma)

    def log_w(self, log_snr: Tensor) -> Tensor:
        """See `SNRWeighting`."""
        return _ln(self.gamma) + log_snr - _ln_sum(log_snr, self.gamma)


@dataclass(frozen=True)
class P2(SNRWeighting):
    """w = SNR / (k + SNR)^gamma: perception prioritized (Choi et al. 2022, arXiv 2204.00227, Eq. 8).

    1 / (k + SNR)^gamma on eps, SNR / ((1 + SNR)(k + SNR)^gamma) on v and F. gamma = 0 is `Eps`.

    Args:
        k: Bounds the weight on eps at high noise; the paper uses 1.
        gamma: How much clean-up at high SNR is played down; the paper uses 0.5 and 1.

    Raises:
        ValueError: k or gamma is negative or not finite.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _check("k", self.k)
        _check("gamma", self.gamma)

    def log_w(self, log_snr: Tensor) -> Tensor:
        """See `SNRWeighting`."""
        return log_snr - self.gamma * _ln_sum(log_snr, self.k)


@dataclass(frozen=True)
class InDataUnits(StaticWeighting):
    """A weighting in the *data* convention: SNR = 1 / sigma² and lambda = w, whatever the data's standard deviation.

    That is what the papers' code does, on pixels from -1 to 1 as on latents. Up to a constant it is the normalized
    convention with k sd² and gamma sd² for k of P2 and gamma of Min-, Max- and Soft-Min-SNR. P2's gamma, an exponent,
    stays.

    Args:
        weighting: Written for data of unit variance.
    """

    weighting: SNRWeighting

    def log_weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """See `StaticWeighting`."""
        return self.weighting.log_weight(sigma, 1.0)
