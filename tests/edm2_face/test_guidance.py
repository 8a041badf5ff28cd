"""Guidance is D_guide + w (D_main - D_guide) within an interval of noise levels, and nothing elsewhere."""

import math

import pytest
import torch
from torch import Tensor

import edm2


class Counted:
    """D = x · factor, counting its evaluations and keeping what it was asked."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.calls: list[tuple[Tensor, float, object]] = []

    def __call__(self, x: Tensor, sigma: Tensor, labels: object = None) -> Tensor:
        self.calls.append((x, float(sigma), labels))
        return self.factor * x


@pytest.fixture
def main() -> Counted:
    return Counted(0.9)


@pytest.fixture
def guide() -> Counted:
    return Counted(0.4)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


SIGMA = torch.tensor(2.0)


@pytest.mark.parametrize("weight", [-0.5, 0.25, 0.5, 1.4, 3.0])
def test_it_extrapolates_from_the_guide_through_main(main, guide, x, weight):
    x = x.double()
    expected = 0.4 * x + weight * (0.9 * x - 0.4 * x)
    # lerp rounds differently from the formula, by a few units in the last place of the largest term
    torch.testing.assert_close(edm2.guided(main, guide, weight)(x, SIGMA), expected, rtol=1e-13, atol=1e-14)


def test_both_are_asked_the_same(main, guide, x):
    labels = torch.arange(4)
    edm2.guided(main, guide, 2.0)(x, SIGMA, labels)
    for denoiser in (main, guide):
        [(seen, sigma, seen_labels)] = denoiser.calls
        assert seen is x
        assert sigma == 2
        assert seen_labels is labels


def test_weight_one_is_main_and_never_asks_the_guide(main, guide, x):
    assert torch.equal(edm2.guided(main, guide, 1)(x, SIGMA), 0.9 * x)
    sampled = edm2.sample_heun(edm2.guided(main, guide, 1.0), x, num_steps=4)
    assert torch.equal(sampled, edm2.sample_heun(main, x, num_steps=4))
    assert guide.calls == []


def test_weight_zero_is_the_guide_and_never_asks_main(main, guide, x):
    assert torch.equal(edm2.guided(main, guide, 0)(x, SIGMA), 0.4 * x)
    sampled = edm2.sample_heun(edm2.guided(main, guide, 0.0), x, num_steps=4)
    assert torch.equal(sampled, edm2.sample_heun(guide, x, num_steps=4))
    assert main.calls == []


@pytest.mark.parametrize(("sigma", "inside"), [(0.5, False), (0.51, True), (2.0, True), (2.01, False)])
def test_the_interval_is_open_below_and_closed_above(main, guide, x, sigma, inside):
    edm2.guided(main, guide, 2.0, (0.5, 2.0))(x, torch.tensor(sigma))
    assert bool(guide.calls) == inside


def test_outside_the_interval_main_is_alone(main, guide, x):
    """Whatever the weight, even 0: there the weight is 1."""
    assert torch.equal(edm2.guided(main, guide, 0, (0.5, 2))(x, torch.tensor(5.0)), 0.9 * x)
    assert guide.calls == []


def test_the_weight_is_constant_within_a_step(main, guide, x):
    """Decided at the level where the step begins: the second evaluation of its last step may lie below the interval,
    and the second evaluation of the step before its first one is not guided although it lies inside."""
    levels = edm2.sigma_steps(8)
    high, low = levels[2].item(), levels[5].item()  # bounds on levels of the grid: 2, 3, 4 are inside, 5 is not
    edm2.sample_heun(edm2.guided(main, guide, 2.0, (low, high)), x, num_steps=8)
    expected = [levels[i + second].item() for i in (2, 3, 4) for second in (0, 1)]
    assert [sigma for _, sigma, _ in guide.calls] == expected
    assert len(main.calls) == 15


def test_churn_does_not_move_a_step_out_of_the_interval(main, guide, x):
    """A step that begins at the interval's upper end is guided, although churn takes it above."""
    top = edm2.sigma_steps(8)[3].item()
    edm2.sample_heun(edm2.guided(main, guide, 2.0, (0, top)), x, num_steps=8, S_churn=4, randn_like=torch.zeros_like)
    assert guide.calls[0][1] > top
    assert len(guide.calls) == 2 * 5 - 1


@pytest.mark.parametrize("interval", [(2.0, 0.5), (1.0, 1.0), (-1.0, 2.0), (math.nan, 1.0), (0.0, math.nan)])
def test_an_interval_upside_down_is_refused(main, guide, interval):
    with pytest.raises(ValueError, match="interval") as error:
        edm2.guided(main, guide, 2.0, interval)
    assert "\n" not in str(error.value)


def test_networks_guide_each_other(net, unconditional, x):
    """Classifier-free guidance: the unconditional network gets labels, and has no use for them."""
    labels = torch.arange(4)
    D = edm2.guided(net, unconditional, 1.5)(x, SIGMA, labels)
    from_main, from_guide = net(x, SIGMA, labels), unconditional(x, SIGMA)
    assert not torch.allclose(from_main, from_guide, atol=1e-2)
    torch.testing.assert_close(D, from_guide + 1.5 * (from_main - from_guide), rtol=1e-5, atol=1e-5)  # float32
