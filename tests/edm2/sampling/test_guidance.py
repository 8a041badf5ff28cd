"""Guidance is D_guide + w (D_main - D_guide) within an interval of noise levels, and nothing elsewhere."""

import math
from itertools import pairwise

import pytest
import torch
from golden_data import max_rel
from known_denoisers import Recorder
from torch import Tensor
from torch.nn.functional import one_hot

import edm2
from edm2.sampling.guidance import guided, interval_of_steps, without_labels
from edm2.sampling.samplers.heun import Denoiser


@pytest.fixture
def main() -> Recorder:
    """D = 0.9 x."""
    return Recorder(lambda x, sigma, labels: 0.9 * x)


@pytest.fixture
def guide() -> Recorder:
    """D = 0.4 x."""
    return Recorder(lambda x, sigma, labels: 0.4 * x)


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
        assert [denoiser.x[0] is x, denoiser.labels[0] is labels, denoiser.sigma] == [True, True, [2]]


@pytest.mark.parametrize("weight", [0, 1])
def test_weight_one_is_main_and_zero_the_guide_and_neither_asks_the_other(main, guide, x, weight):
    one, other = (main, guide) if weight else (guide, main)
    assert torch.equal(edm2.guided(main, guide, weight)(x, SIGMA), one.denoise(x, SIGMA, None))
    sampled = edm2.sample_heun(edm2.guided(main, guide, float(weight)), x, num_steps=4)
    assert torch.equal(sampled, edm2.sample_heun(one, x, num_steps=4))
    assert other.x == []


@pytest.mark.parametrize(("sigma", "inside"), [(0.5, False), (0.51, True), (2.0, True), (2.01, False)])
def test_the_interval_is_open_below_and_closed_above(main, guide, x, sigma, inside):
    """Outside, main is alone, even if its weight is 0 inside."""
    D = edm2.guided(main, guide, 0, (0.5, 2.0))(x, torch.tensor(sigma))
    assert torch.equal(D, (0.4 if inside else 0.9) * x)
    edm2.guided(main, guide, 2.0, (0.5, 2.0))(x, torch.tensor(sigma))
    assert len(guide.x) == (2 if inside else 0)


def test_the_weight_is_constant_within_a_step(main, guide, x):
    """Decided at the level where the step begins: the second evaluation of its last step may lie below the interval,
    and the second evaluation of the step before its first one is not guided although it lies inside."""
    levels = edm2.sigma_steps(8)
    high, low = levels[2].item(), levels[5].item()  # bounds on levels of the grid: 2, 3, 4 are inside, 5 is not
    edm2.sample_heun(edm2.guided(main, guide, 2.0, (low, high)), x, num_steps=8)
    expected = [levels[i + second].item() for i in (2, 3, 4) for second in (0, 1)]
    assert guide.sigma == expected
    assert len(main.x) == 15


def test_churn_does_not_move_a_step_out_of_the_interval(main, guide, x):
    """A step that begins at the interval's upper end is guided, although churn takes it above."""
    top = edm2.sigma_steps(8)[3].item()
    edm2.sample_heun(edm2.guided(main, guide, 2.0, (0, top)), x, num_steps=8, S_churn=4, randn_like=torch.zeros_like)
    assert guide.sigma[0] > top
    assert len(guide.x) == 2 * 5 - 1


def test_intervals_upside_down_and_steps_that_do_not_exist_are_refused(main, guide):
    for interval in ((2.0, 0.5), (1.0, 1.0), (-1.0, 2.0), (math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match=r"^[^\n]*interval[^\n]*$"):
            edm2.guided(main, guide, 2.0, interval)
    for first, end in ((3, 3), (4, 3), (-1, 3), (0, 33), (32, 33)):
        with pytest.raises(ValueError, match=r"^[^\n]*32 steps[^\n]*$"):
            interval_of_steps(first, end)


# ------------------------------------------------------------------------- the same network without labels as a guide


LABELS = torch.tensor([3, 1, 4, 1])


def separately(net: Denoiser, x: Tensor, sigma: Tensor, labels: Tensor, weight: float) -> Tensor:
    from_guide = net(x, sigma, None)
    return from_guide + weight * (net(x, sigma, labels) - from_guide)


@pytest.mark.parametrize("sigma", [torch.tensor(0.1), SIGMA, torch.tensor(40.0)])
@pytest.mark.parametrize("labels", [LABELS, one_hot(LABELS, 10)], ids=["numbers", "one-hot"])
def test_a_network_without_labels_guides_itself_in_one_batch_of_twice_the_size(net, x, labels, sigma):
    """Equal to two evaluations, but for float32: convolutions round by the size of the batch, times the weight."""
    recorder = Recorder(net)
    D = guided(recorder, without_labels(recorder), 1.7)(x, sigma, labels)
    assert recorder.sizes == [8]
    assert max_rel(D, separately(net, x, sigma, labels, 1.7)) < 1e-5
    assert max_rel(D, net(x, sigma, labels)) > 1e-2, "the guide must make a difference"


def test_it_costs_one_evaluation_at_every_weight(net, x):
    """Weight 1 with the labels, weight 0 without, each of the plain size, as outside of an interval; 2 N - 1
    evaluations for N steps. Where there are no labels, nothing is to guide away from."""
    for weight, size in ((1.0, 4), (0.0, 4), (1.5, 8)):
        recorder = Recorder(net)
        edm2.sample_heun(guided(recorder, without_labels(recorder), weight), x, LABELS, num_steps=3)
        assert recorder.sizes == [size] * 5
        assert all(labels is (None if weight == 0 else LABELS) for labels in recorder.labels) or weight == 1.5
    recorder = Recorder(net)
    denoise = guided(recorder, without_labels(recorder), 2.0, interval_of_steps(1, 3, 5))
    edm2.sample_heun(denoise, x, LABELS, num_steps=5)
    assert recorder.sizes == [4, 4, 8, 8, 8, 8, 4, 4, 4]
    recorder = Recorder(net)
    D = guided(recorder, without_labels(recorder), 5.0)(x, SIGMA, None)
    assert recorder.sizes == [4]
    torch.testing.assert_close(D, net(x, SIGMA), rtol=1e-5, atol=1e-6)  # a blend of a value with itself


def test_another_network_is_asked_separately(net, unconditional, make_net, x):
    """Classifier-free guidance by a second network: one without classes gets labels, and has no use for them."""
    other = make_net(seed=5)
    for guide, wrap, given in ((unconditional, lambda guide: guide, LABELS), (other, without_labels, None)):
        main, recorder = Recorder(net), Recorder(guide)
        D = guided(main, wrap(recorder), 2.0)(x, SIGMA, LABELS)
        assert main.sizes == recorder.sizes == [4]
        assert recorder.labels[0] is given
        from_main, from_guide = net(x, SIGMA, LABELS), guide(x, SIGMA)
        assert not torch.allclose(from_main, from_guide, atol=1e-2)
        torch.testing.assert_close(D, from_guide + 2 * (from_main - from_guide), rtol=1e-5, atol=1e-5)  # float32


# --------------------------------------------------------------------------------------------------- guides of guides


@pytest.mark.parametrize("role", ["main", "guide", "unlabelled guide"])
def test_inner_guidance_is_constant_within_a_step_too(main, guide, x, role):
    """Guided denoisers may be guided: both intervals are decided where the step begins."""
    inner = guided(main, guide, 2.0, interval_of_steps(2, 4, 6))
    other = Recorder(lambda x, sigma, labels: 0.5 * x)
    outer = {
        "main": lambda: guided(inner, other, 1.5),
        "guide": lambda: guided(other, inner, 1.5),
        "unlabelled guide": lambda: guided(other, without_labels(inner), 1.5),
    }[role]()
    edm2.sample_heun(outer, x, LABELS, num_steps=6)
    levels = edm2.sigma_steps(6).tolist()
    assert guide.sigma == [levels[i] for i in (2, 3, 3, 4)]
    assert len(main.x) == len(other.x) == 11


def test_a_guided_denoiser_guides_itself_without_labels_in_one_batch(net, make_net, x):
    """Autoguidance inside, classifier-free guidance around it: one doubled batch of each network."""
    main, weaker = Recorder(net), Recorder(make_net(seed=5))
    inner = guided(main, weaker, 2.0)
    D = guided(inner, without_labels(inner), 1.5)(x, SIGMA, LABELS)
    assert main.sizes == weaker.sizes == [8]
    assert max_rel(D, separately(inner, x, SIGMA, LABELS, 1.5)) < 1e-5


# ------------------------------------------------------------------------------------------------- intervals of steps


def guided_steps(interval: tuple[float, float], num_steps: int, dtype: torch.dtype) -> list[int]:
    """Steps whose first evaluation is guided."""
    denoise = guided(lambda x, sigma, labels: x * 0, lambda x, sigma, labels: x * 0 + 1, 0.0, interval)
    levels = edm2.sigma_steps(num_steps, dtype=dtype)[:-1]
    return [i for i, sigma in enumerate(levels) if denoise.at_step(sigma)(torch.ones(1), sigma, None) == 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [1, 5, 32, 1000])
def test_an_interval_of_steps_is_these_steps_whatever_the_rounding(num_steps, dtype):
    for first, end in {(0, num_steps), (0, 1), (num_steps - 1, num_steps), (num_steps // 3, num_steps // 2 + 1)}:
        interval = interval_of_steps(first, end, num_steps)
        assert guided_steps(interval, num_steps, dtype) == list(range(first, end))


def test_its_ends_are_levels_of_the_solver():
    """These are further apart than what counts as the same."""
    levels = edm2.sigma_steps(32, dtype=torch.float64).tolist()
    assert interval_of_steps(17, 23) == (levels[23], levels[17])
    assert interval_of_steps(0, 32) == (0, levels[0])
    fine = edm2.sigma_steps(1000, dtype=torch.float64)[:-1].tolist()
    assert min(above / below for above, below in pairwise(fine)) > 1 + 100e-5


@pytest.mark.parametrize("itself", [False, True], ids=["another network", "itself without labels"])
def test_every_image_of_a_batch_may_have_its_own_noise_level(make_net, net, x, itself):
    """A teacher in training sees levels [N]; each image is guided as if it were alone, inside the interval or not."""
    guide = without_labels(net) if itself else make_net(seed=1)
    D = guided(net, guide, 2.0, (0.5, 5.0))
    sigma = torch.tensor([0.1, 1.0, 4.0, 20.0])
    alone = torch.cat([D(x[i : i + 1], sigma[i], LABELS[i : i + 1]) for i in range(4)])
    for levels in (sigma, sigma.reshape(4, 1, 1, 1)):
        assert max_rel(D(x, levels, LABELS), alone) < 1e-5
    assert torch.equal(D(x, sigma, LABELS)[::3], net(x, sigma, LABELS)[::3]), "outside, the network is alone"
