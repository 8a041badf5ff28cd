"""Half-lives, ramp-up ratios and widths: they name the same profiles."""

import numpy as np
import pytest

from edm2.post_hoc_ema import (
    beta_to_half_life,
    half_life_to_beta,
    half_life_to_sigma_rel,
    rampup_ratio_to_sigma_rel,
    sigma_rel_to_half_life,
    sigma_rel_to_rampup_ratio,
)

WIDTHS = [0.001, 0.01, 0.05, 0.1, 0.2, 0.28, 0.288]


def exponential_weights(betas):
    """Share of each step in an average that keeps `betas`, and that of the initial weights in front."""
    kept = np.cumprod(betas[::-1])[::-1]
    return np.concatenate([kept[:1], (1 - betas) * np.append(kept[1:], 1)])


@pytest.mark.parametrize("half_life", [1e3, 1e4, 1e5, 2.4e5])
def test_width_of_a_traditional_average_is_that_of_its_weights(half_life):
    """Standard deviation over steps, those of the initial weights at time 0; a step is 1e-6 of the run."""
    steps = 1_000_000
    weights = exponential_weights(np.full(steps, half_life_to_beta(half_life, 1)))
    t = np.arange(steps + 1) / steps
    spread = np.sqrt(weights @ (t - weights @ t) ** 2)
    assert half_life_to_sigma_rel(half_life, steps) == pytest.approx(spread, rel=1e-4)  # discretization, 1e-6 / 0.001


def test_there_and_back_and_the_widths_of_short_half_lives():
    """λ / (t ln 2) of an exponential, as initial weights have nothing left; the paper's time has β = 0.9999."""
    np.testing.assert_allclose(half_life_to_sigma_rel(sigma_rel_to_half_life(WIDTHS, 5e6), 5e6), WIDTHS, rtol=1e-12)
    np.testing.assert_allclose(rampup_ratio_to_sigma_rel(sigma_rel_to_rampup_ratio(WIDTHS)), WIDTHS, rtol=1e-12)
    np.testing.assert_allclose(half_life_to_beta(beta_to_half_life([0.9, 0.9999], 64), 64), [0.9, 0.9999], rtol=1e-12)
    half_life = beta_to_half_life(0.9999, 1)
    assert half_life_to_sigma_rel(half_life, 400_000) == pytest.approx(half_life / (400_000 * np.log(2)), rel=1e-9)
    assert half_life_to_sigma_rel(half_life, 400_000) == pytest.approx(0.025, rel=1e-3)


def test_impossible_lengths_are_refused():
    for half_life in (0.25, 0.6, 1, 100):  # of a run of 1
        with pytest.raises(ValueError, match="too long a part"):
            half_life_to_sigma_rel(half_life, 1)
    for call, message in [
        (lambda: half_life_to_sigma_rel(0, 1), "half_life=0.0 must be positive"),
        (lambda: half_life_to_sigma_rel(1, -1), "t=-1.0 must be positive"),
        (lambda: sigma_rel_to_half_life(0.3, 1), "sigma_rel=0.3"),
        (lambda: rampup_ratio_to_sigma_rel(0.7), "ratio=0.7"),
        (lambda: beta_to_half_life(1, 1), "beta=1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
