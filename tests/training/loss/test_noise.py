"""Distributions of noise levels against their definitions, and the stratified stream that all of them draw from."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from edm2.training import (
    NOISE_DISTRIBUTIONS,
    DDPMCosine,
    DDPMLinear,
    LnNormal,
    LnUniform,
    NoiseDistribution,
    levels,
    noise_distribution,
)
from edm2.training.data.order import ShuffledOrder
from edm2.training.loss.noise import stratified_normal

ALL = [noise_distribution(name) for name in NOISE_DISTRIBUTIONS]


def probability(distribution: NoiseDistribution, sigma: Tensor) -> np.ndarray:
    """The distribution function by another way; for a discrete one, in the middle of a step."""
    sigma = sigma.double().numpy()
    if isinstance(distribution, LnNormal):
        return stats.norm.cdf(np.log(sigma), distribution.P_mean, distribution.P_std)
    if isinstance(distribution, LnUniform):
        low, high = np.log(distribution.sigma_min), np.log(distribution.sigma_max)
        return (np.log(sigma) - low) / (high - low)
    steps = levels(distribution, distribution.steps).numpy()
    return (np.abs(np.log(sigma)[:, None] - np.log(steps)).argmin(axis=1) + 0.5) / distribution.steps


@pytest.mark.parametrize("distribution", ALL, ids=NOISE_DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_larger_numbers_give_higher_noise(distribution, dtype):
    """Up to where float32 can no longer tell Phi from 0 and 1."""
    sigma = distribution.sigma(torch.linspace(-9, 9, 4001, dtype=dtype).reshape(1, -1))
    assert sigma.dtype == dtype
    assert sigma.shape == (1, 4001)
    assert sigma.isfinite().all()
    assert (sigma > 0).all()
    assert (sigma.diff() >= 0).all()


@pytest.mark.parametrize("distribution", ALL, ids=NOISE_DISTRIBUTIONS)
def test_drawn_noise_levels_follow_the_distribution(distribution):
    """20,000 numbers: Kolmogorov-Smirnov against the distribution function, of steps up to half a step of 1/1000."""
    sigma = distribution.sigma(torch.randn(20_000, generator=torch.Generator().manual_seed(2)))
    statistic = stats.kstest(probability(distribution, sigma), "uniform").statistic
    assert statistic < 1.63 / math.sqrt(20_000) + 0.0005  # 1 % level


@pytest.mark.parametrize("distribution", ALL, ids=NOISE_DISTRIBUTIONS)
@pytest.mark.parametrize("count", [1, 10, 1000])
def test_levels_are_the_middles_of_equal_strata(distribution, count):
    """1e-12: Phi and its inverse in float64. A step's middle differs by up to half a step of 1/1000."""
    sigma = levels(distribution, count)
    assert sigma.dtype == torch.float64
    discrete = isinstance(distribution, (DDPMLinear, DDPMCosine))
    expected = (np.arange(count) + 0.5) / count
    assert np.abs(probability(distribution, sigma) - expected).max() <= (0.0005 if discrete else 1e-12) * (1 + 1e-9)


# ------------------------------------------------------------------------------------------------------------ schedules


def test_the_linear_schedule_by_its_definition():
    """One step after the other: x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) n, followed as signal and noise power."""
    signal, noise, expected = 1.0, 0.0, []
    for t in range(1000):
        beta = 1e-4 + (0.02 - 1e-4) * t / 999
        signal, noise = (1 - beta) * signal, (1 - beta) * noise + beta
        expected.append(math.sqrt(noise / signal))
    sigma = levels(DDPMLinear(), 1000)
    assert np.abs(sigma.numpy() / expected - 1).max() <= 1e-11  # rounding of 1000 steps
    assert sigma[0].item() == pytest.approx(0.0100005, abs=1e-7)
    assert sigma[-1].item() == pytest.approx(157.407, abs=1e-3)


def test_the_cosine_schedule_by_its_definition():
    """abar as Nichol and Dhariwal state it; the last step alone is clipped, so that a thousandth of the signal is left.
    1e-9: 1 - beta of the last steps has few digits."""
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    abar = f[1:] / f[0]
    abar[-1] = abar[-2] / 1000
    sigma = levels(DDPMCosine(), 1000).numpy()
    assert np.abs(sigma / np.sqrt(1 / abar - 1) - 1).max() <= 1e-9
    assert sigma[-2] == pytest.approx(641.66, abs=0.01)
    assert sigma[-1] == pytest.approx(20291.2, abs=0.1)


def test_ln_uniform_spans_the_sampler_s_range():
    """From its end at 0.002 to its start at 80, both within reach of the middle of the outer strata."""
    sigma = levels(LnUniform(), 100_000)
    assert sigma[0].item() == pytest.approx(0.002, rel=1e-4)
    assert sigma[-1].item() == pytest.approx(80, rel=1e-4)
    assert sigma.log().diff().std() < 1e-9


# --------------------------------------------------------------------------------------------- stratified noise levels


@pytest.mark.parametrize("strata", [1, 3, 64, 2048])
def test_every_batch_has_one_noise_level_per_stratum(strata):
    """At any first position. 1e-4: float32 rounds a normal number by 1e-7, that is 2e-4 of 2048 strata.

    The ends of the distribution are finite, of the smallest and the largest float32 uniform numbers."""
    first = 7 * strata + 2
    uniform = torch.rand(2 * strata, generator=torch.Generator().manual_seed(0))
    normal = stratified_normal(first, uniform, strata)
    assert normal.dtype == torch.float32
    position = torch.arange(first, first + 2 * strata)
    torch.testing.assert_close(
        strata * torch.special.ndtr(normal.double()), (position % strata + uniform).double(), atol=1e-4, rtol=0
    )
    ends = torch.tensor([0.0, 1 - 2.0**-24])
    lowest = stratified_normal(0, ends[:1], strata)
    assert -8 < lowest < -5
    torch.testing.assert_close(lowest, -stratified_normal(strata - 1, ends[1:], strata))


def test_each_number_for_itself_is_normal():
    """One position, drawn at random, of each of 5,000 batches, as an image meets them over the epochs."""
    strata, batches = 16, 5_000
    g = torch.Generator().manual_seed(0)
    normal = stratified_normal(0, torch.rand(strata * batches, generator=g), strata).reshape(batches, strata)
    position = torch.randint(strata, (batches,), generator=g)
    assert stats.kstest(normal[torch.arange(batches), position].numpy(), "norm").pvalue > 0.01
    assert normal.std() == pytest.approx(1, abs=4 / math.sqrt(2 * normal.numel()))


def test_images_and_strata_are_independent():
    """The order of images does not depend on strata. 4,000 epochs of 40 images, which end within a batch of 16."""
    images, strata, epochs = 40, 16, 4_000
    order = ShuffledOrder(images, seed=0).indices(0, images * epochs)
    position = torch.arange(images * epochs)
    met = (torch.from_numpy(order) * strata + position % strata).bincount(minlength=images * strata)
    assert stats.chi2_contingency(met.reshape(images, strata).numpy()).pvalue > 0.01


# ---------------------------------------------------------------------------------------------------------------- names


def test_distributions_by_name():
    assert noise_distribution("ln-normal", -1.2, 1.2) == LnNormal(-1.2, 1.2)
    assert [type(distribution) for distribution in ALL] == [LnNormal, DDPMLinear, DDPMCosine, LnUniform]
    with pytest.raises(ValueError, match=r"noise='cosine' is unknown; there are ln-normal, ddpm, ddpm-cosine, uniform"):
        noise_distribution("cosine")
