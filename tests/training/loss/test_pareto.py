"""Pareto-optimal weights against the conditions of optimality, and the weighting that keeps them in a run."""

import math

import pytest
import torch
from torch import Tensor

from edm2.training import Constant, LnNormal, Pareto, levels, normalized, pareto_weights


def tasks(kind: str, bins: int = 12) -> Tensor:
    """Gradients [bins, 200] that resemble those of noise levels more and more."""
    g = torch.Generator().manual_seed(0)
    independent = torch.randn(bins, 200, dtype=torch.float64, generator=g)
    sizes = torch.logspace(-2, 0, bins, dtype=torch.float64)[:, None]  # on x0, gradients grow with the noise
    growing = sizes * independent
    alike = sizes * independent.cumsum(0)  # neighbours want the same
    return {"independent": independent, "growing": growing, "alike": alike}[kind]


KINDS = ["independent", "growing", "alike"]


def gram_of(gradients: Tensor) -> Tensor:
    return gradients @ gradients.T


@pytest.mark.parametrize("strength", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_satisfy_the_conditions_of_optimality(kind, strength):
    """Of || sum_t w_t grad L_t ||² + lambda sum_t w_t² on the simplex: no task's weight could be raised at the cost of
    another's. The objective's derivative is the same for all weights that are not zero, and not lower for those that
    are; being strictly convex, it has this one optimum. Units do not matter. 1e-9: rounding, condition 1e3."""
    gram = gram_of(tasks(kind))
    w = pareto_weights(gram, strength)
    assert w.dtype == torch.float64
    assert (w >= 0).all()
    assert w.sum().item() == pytest.approx(1, abs=1e-12)
    derivative = gram @ w + strength * gram.diagonal().mean() * w
    at_optimum = w @ derivative
    torch.testing.assert_close(derivative[w > 0], at_optimum.expand(int((w > 0).sum())), rtol=1e-9, atol=0)
    assert (derivative[w == 0] >= at_optimum * (1 - 1e-9)).all()
    torch.testing.assert_close(pareto_weights(1e-12 * gram, strength), w)


def test_a_step_improves_all_tasks_alike():
    """With a vanishing second term, the descent direction has the same product with every gradient in it, and no
    smaller one with the others: that is what makes it Pareto-optimal."""
    for kind in KINDS:
        gradients = tasks(kind)
        w = pareto_weights(gram_of(gradients), 1e-9)
        direction = w @ gradients
        gain = gradients @ direction
        torch.testing.assert_close(gain[w > 0], (direction @ direction).expand(int((w > 0).sum())), rtol=1e-4, atol=0)
        assert (gain > 0.999 * direction @ direction).all()


# ---------------------------------------------------------------------------------------------------------- in a run


def pareto(**options) -> Pareto:
    return Pareto(LnNormal(), 0.5, **{"bins": 12, **options})


def mean_on_F(weighting, sd: float = 0.5) -> float:
    sigma = levels(LnNormal(), 100_000)
    return (weighting.weight(sigma, sd) * sigma**2 * sd**2 / (sigma**2 + sd**2)).mean().item()


IMAGES = torch.full((12,), 4)


def test_before_the_first_update_all_errors_of_x0_count_alike():
    sigma = torch.logspace(-2, 2, 50, dtype=torch.float64)
    torch.testing.assert_close(pareto(normalize=False).weight(sigma, 0.5), Constant().weight(sigma, 0.5))
    constant = normalized(Constant(), LnNormal(), 0.5)
    torch.testing.assert_close(pareto().weight(sigma, 0.5), constant.weight(sigma, 0.5), rtol=1e-9, atol=0)


def test_an_update_finds_the_optimal_weights():
    """Those of mean gradients: sums over 4 images, of which there are as many in each bin. The loss is the weighted
    squared error, whose mean on F is still 1; 1e-4: 10,000 levels against 100,000."""
    weighting = pareto(floor=0.0)
    weighting.update(4 * tasks("growing"), IMAGES)
    expected = pareto_weights(gram_of(tasks("growing")), 1.0)
    torch.testing.assert_close(weighting.weights, expected)
    by_bin = weighting.weight(levels(LnNormal(), 12), 0.5)
    torch.testing.assert_close(by_bin / by_bin.sum(), expected)
    assert mean_on_F(weighting) == pytest.approx(1, abs=1e-4)
    sigma, squared_error = torch.tensor([0.1, 3.0]).reshape(2, 1, 1, 1), torch.rand(2, 3, 4, 4)
    loss = weighting(squared_error, sigma, torch.full((2, 1, 1, 1), 9.0), 0.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss / squared_error, weighting.weight(sigma, 0.5).expand_as(loss))


def test_weights_wait_until_every_bin_has_been_seen():
    weighting, gradients = pareto(), 4 * tasks("growing")
    absent, others = torch.tensor([0] + 11 * [4]), torch.tensor([4] + 11 * [0])
    weighting.update(gradients * (absent > 0)[:, None], absent)
    assert weighting.weights.unique().numel() == 1
    weighting.update(gradients * (others > 0)[:, None], others)
    assert weighting.weights.unique().numel() == 12
    assert torch.linalg.eigvalsh(weighting.gram).min() >= -1e-9  # still a Gram matrix
    torch.testing.assert_close(weighting.gram.diagonal(), gram_of(tasks("growing")).diagonal())


def test_updates_are_due_every_so_many_steps_and_leave_every_bin_its_floor():
    """Even where the optimum is zero."""
    weighting = pareto(floor=0.06, strength=0.01, every=4)
    assert [steps for steps in range(10) if weighting.is_due(steps)] == [4, 8]
    weighting.update(4 * tasks("alike"), IMAGES)
    assert (pareto_weights(gram_of(tasks("alike")), 0.01) == 0).any()
    assert weighting.weights.min().item() == pytest.approx(0.06 / 12)
    assert weighting.weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_say_nothing_change_nothing(value):
    """Config G starts with an output gain of zero; later gradients may not be finite."""
    weighting = pareto()
    weighting.update(torch.zeros(12, 200), IMAGES)
    assert weighting.weights.unique().numel() == 1
    weighting.update(4 * tasks("growing"), IMAGES)
    before = {name: tensor.clone() for name, tensor in weighting.state_dict().items()}
    broken = tasks("growing")
    broken[3, 5] = value
    weighting.update(broken, IMAGES)
    assert all(torch.equal(before[name], tensor) for name, tensor in weighting.state_dict().items())
