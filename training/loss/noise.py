"""Distributions of the noise level sigma in training (arXiv 2312.02696v2, Eq. 15, and those of other papers).

Each maps standard normal numbers to noise levels, monotonically: all of them draw from the same random stream, and a
stratified stream gives stratified noise levels of any distribution.

Diffusion in its variance-preserving form (DDPM) shows the network alpha y + s n with alpha² = abar and s² = 1 - abar;
seen from the data, that is the noise level sigma = s / alpha.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

HALF_STEP = 2.0**-25
"""Half of the distance between float32 uniform numbers: added to them, it keeps 0 out and 1 out."""


class NoiseDistribution(Protocol):
    """A distribution of noise levels."""

    def sigma(self, normal: Tensor) -> Tensor:
        """Standard normal numbers -> noise levels, same shape, dtype and device; never decreasing."""
        ...


def uniform_from_normal(normal: Tensor) -> Tensor:
    """Standard normal numbers -> uniform numbers Phi(normal) in [0, 1]."""
    return (1 + torch.erf(normal / math.sqrt(2))) / 2


@dataclass(frozen=True)
class LnNormal:
    """ln sigma ~ N(P_mean, P_std²), as in EDM and EDM2 (arXiv 2312.02696v2, Eq. 15).

    Args:
        P_mean: Mean of ln sigma.
        P_std: Standard deviation of ln sigma.
    """

    P_mean: float = -0.4
    P_std: float = 1.0

    def sigma(self, normal: Tensor) -> Tensor:
        """sigma = exp(P_mean + P_std normal)."""
        return (self.P_mean + self.P_std * normal).exp()


@dataclass(frozen=True)
class LnUniform:
    """ln sigma uniform from ln sigma_min to ln sigma_max; by default over the range of EDM's sampler.

    Args:
        sigma_min: Lowest noise level.
        sigma_max: Highest noise level.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def sigma(self, normal: Tensor) -> Tensor:
        """sigma = sigma_min (sigma_max / sigma_min)^Phi(normal)."""
        span = math.log(self.sigma_max / self.sigma_min)
        return (math.log(self.sigma_min) + span * uniform_from_normal(normal)).exp()


@dataclass(frozen=True)
class DDPMSchedule(ABC):
    """Noise levels of T steps that add noise of variance beta_t, each step equally often.

        sigma_t = sqrt((1 - abar_t) / abar_t),    abar_t = prod_{s <= t} (1 - beta_s)

    Args:
        steps: T.
    """

    steps: int = 1000

    @abstractmethod
    def betas(self) -> Tensor:
        """beta_t, float64 [T]."""

    def sigma(self, normal: Tensor) -> Tensor:
        """sigma_t of step t = floor(T Phi(normal)), counted from zero."""
        step = (self.steps * uniform_from_normal(normal)).long().clamp(max=self.steps - 1)
        return sigma_table(self).to(normal)[step]


@lru_cache
def sigma_table(schedule: DDPMSchedule) -> Tensor:
    """sigma_t of every step, float64 [T]."""
    ln_abar = torch.log1p(-schedule.betas()).cumsum(0)
    return torch.expm1(-ln_abar).sqrt()  # (1 - abar) / abar = 1 / abar - 1


@dataclass(frozen=True)
class DDPMLinear(DDPMSchedule):
    """Linear beta_t from 0.0001 to 0.02 (Ho et al. 2020, arXiv 2006.11239, Section 4).

    P2 and Min-SNR use it on pixels. 1000 steps span sigma from 0.01 to 157.
    """

    def betas(self) -> Tensor:
        """beta_t, float64 [T]."""
        return torch.linspace(1e-4, 0.02, self.steps, dtype=torch.float64)


@dataclass(frozen=True)
class DDPMCosine(DDPMSchedule):
    """abar as a squared cosine (Nichol and Dhariwal 2021, arXiv 2102.09672, Eq. 17).

        abar(t) = cos²((t / T + 0.008) / 1.008 · pi / 2),    beta_t = min(1 - abar(t) / abar(t - 1), 0.999)

    1000 steps span sigma from 0.0064 to 20,291; the last but one has 642.
    """

    def betas(self) -> Tensor:
        """beta_t, float64 [T]."""
        t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        abar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)


def levels(distribution: NoiseDistribution, count: int) -> Tensor:
    """Noise levels in the middle of `count` strata of equal probability, ascending: float64 [count].

    The mean of a function of them approximates its expectation over the distribution.
    """
    quantile = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return distribution.sigma(torch.special.ndtri(quantile))


def stratified_normal(first_position: int, uniform: Tensor, strata: int) -> Tensor:
    """Standard normal numbers: each block of `strata` positions has one in every stratum of equal probability.

        normal = Phi⁻¹((p mod B + U) / B)

    with B strata and p the position in the run. Each number for itself is N(0, 1), if U is uniform.

    Args:
        first_position: Position p of the first number.
        uniform: U in [0, 1) of consecutive positions, float32 [N].
        strata: B, usually the images per step.

    Returns:
        float32 [N] on the device of `uniform`.
    """
    device = uniform.device
    if device.type == "mps":  # has no float64
        uniform = uniform.cpu()
    stratum = torch.arange(first_position, first_position + len(uniform), device=uniform.device) % strata
    quantile = (stratum + uniform.double() + HALF_STEP) / strata
    return torch.special.ndtri(quantile).float().to(device)
