"""Solvers beside Heun's method solve the same equation, with the order of their names and one evaluation per step."""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DEISMultistepScheduler, EDMDPMSolverMultistepScheduler
from golden_data import arrays
from known_denoisers import STD, Recorder, Stepped, gaussian_denoiser, gaussian_solution, golden_mixtures
from torch import Tensor
from torch.nn.functional import one_hot

import edm2
from edm2.networks import fold
from edm2.networks.precond import MAP_LEVELS
from edm2.sampling.external import ways_to_sample
from edm2.sampling.guidance import changes_between, guided, interval_of_steps, without_labels
from edm2.sampling.samplers import HEUN, SAMPLERS
from edm2.sampling.samplers.deis import deis_weights
from edm2.sampling.samplers.heun import Denoiser

MULTISTEP = {name: sampler.sample for name, sampler in SAMPLERS.items() if sampler != HEUN}
ORDERS = {
    "euler": (edm2.sample_euler, 1),
    "dpmpp_2m": (edm2.sample_dpmpp_2m, 2),
    "deis-1": (partial(edm2.sample_deis, order=1), 1),
    "deis-2": (partial(edm2.sample_deis, order=2), 2),
    "deis-3": (edm2.sample_deis, 3),
}

every_multistep = pytest.mark.parametrize("sample", MULTISTEP.values(), ids=MULTISTEP)
every_sampler = pytest.mark.parametrize("sample", [HEUN.sample, *MULTISTEP.values()], ids=["heun", *MULTISTEP])
every_order = pytest.mark.parametrize(("sample", "order"), ORDERS.values(), ids=ORDERS)


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def mixtures(golden) -> tuple[Denoiser, Denoiser, Tensor]:
    """Closed-form denoisers, one to guide the other, and labels of eight images."""
    label_dim = len(arrays(golden, "sampler/sampler.safetensors")["gmm/main/logw"])
    return *golden_mixtures(golden), one_hot(torch.arange(8) % label_dim, label_dim).double()


def observed_orders(sample: Callable[[int], Tensor], exact: Tensor, steps: list[int]) -> list[float]:
    """log2 of how much the largest error falls from one number of steps to the next."""
    errors = [(sample(N) - exact).abs().max() for N in steps]
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


# ------------------------------------------------------------------------------------------------ convergence


@every_order
def test_order_on_a_linear_equation_of_known_solution(noise, sample, order):
    """Halving the steps divides the error by 2^order.

    sigma_min = 1e-7 takes the last, first-order step out of the picture. The margin is what the next order still
    contributes, which is more the higher the order: measured 2.81 and 2.92 for order 3.
    """
    exact = gaussian_solution(80 * noise, 80)
    orders = observed_orders(
        lambda N: sample(gaussian_denoiser, noise, num_steps=N, sigma_min=1e-7, dtype=torch.float64),
        exact,
        [64, 128, 256],
    )
    assert orders == pytest.approx([order] * 2, abs=0.2)


def test_heun_and_deis_have_the_same_limit(noise, mixtures):
    """1e-4: the error of Heun's method, 6.7e-5 in so many steps; it falls fourfold when they double."""
    main, _, labels = mixtures
    deis, heun = (
        sample(main, noise, labels, num_steps=512, dtype=torch.float64)
        for sample in (edm2.sample_deis, edm2.sample_heun)
    )
    assert (deis - heun).abs().max() < 1e-4


@every_order
def test_order_with_guidance_in_an_interval(noise, mixtures, sample, order):
    """The denoiser jumps where guidance starts and ends: extrapolation from before is wrong there.

    All numbers of steps have the interval's ends among their levels. Measured without forgetting the past: order 1.
    """
    main, guide, labels = mixtures
    denoise = guided(main, guide, 2.0, interval_of_steps(6, 12, 17))
    exact = edm2.sample_deis(denoise, noise, labels, num_steps=1025, dtype=torch.float64)
    orders = observed_orders(
        lambda N: sample(denoise, noise, labels, num_steps=N, dtype=torch.float64), exact, [65, 129, 257]
    )
    assert orders == pytest.approx([order] * 2, abs=0.2)  # the past begins three times: more of the next order


def test_24_evaluations_are_as_good_as_63_of_heun():
    """The purpose of DEIS, on the network that comes with the package (docs/solvers.md)."""
    net = fold(edm2.load("digits8"))
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)

    def errors(sample: Callable, num_steps: int) -> Tensor:
        return (sample(net, noise, labels, num_steps=num_steps) - exact).square().mean(dim=(1, 2, 3)).sqrt()

    exact = edm2.sample_deis(net, noise, labels, num_steps=128)
    assert errors(edm2.sample_deis, 24).median() < errors(edm2.sample_heun, 32).median()


# ------------------------------------------------------------------------------------------------ exactness


@every_multistep
@pytest.mark.parametrize("N", [1, 2, 3, 5, 32])
def test_a_single_image_is_reached_on_a_straight_line(noise, sample, N):
    """D is the image whatever x, so the way there is straight, and every step of any length is exact."""
    image = torch.full_like(noise, 0.7)
    recorder = Recorder(lambda x, sigma, labels: image)
    assert torch.equal(sample(recorder, noise, num_steps=N, dtype=torch.float64), image)
    for x, t in zip(recorder.x, recorder.sigma, strict=True):
        # x comes from values near 80, by weights that steps over all levels at once know to 1e-13
        torch.testing.assert_close(x, image + t * (noise - image / 80), rtol=0, atol=1e-12 * 80)


def test_euler_s_formula(noise):
    t_steps = edm2.sigma_steps(7, dtype=torch.float64)
    x = noise * t_steps[0]
    for t, t_next in pairwise(t_steps):
        x = x + (t_next - t) * (x - gaussian_denoiser(x, t)) / t
    sampled = edm2.sample_euler(gaussian_denoiser, noise, num_steps=7, dtype=torch.float64)
    torch.testing.assert_close(sampled, x, rtol=0, atol=1e-12)  # float64, from values near 80


@pytest.mark.parametrize("levels", [[3.0], [3.0, 4.0], [3.0, 4.0, 7.0], [1e-2, 0.5, 80.0]], ids=str)
@pytest.mark.parametrize("ratio", [1e-4, 0.1, 0.9, 0.9999])
def test_weights_of_deis_integrate_polynomials_of_the_logarithm(levels, ratio):
    """One power of ln t per level, against closed forms, whose terms cancel to 1e-16 of themselves."""
    t, t_next = levels[0], levels[0] * ratio
    weights = np.array(deis_weights(levels, t_next))
    logs = np.log(levels)
    antiderivatives = [
        lambda s: s,
        lambda s: s * (math.log(s) - 1),
        lambda s: s * (math.log(s) ** 2 - 2 * math.log(s) + 2),
    ]
    for power, integral in enumerate(antiderivatives[: len(levels)]):
        expected = integral(t_next) - integral(t)
        assert weights @ logs**power == pytest.approx(expected, rel=1e-12, abs=1e-13 * t)
    for order in (0, 4, -1):
        with pytest.raises(ValueError, match=f"^order={order} must be 1, 2 or 3$"):
            edm2.sample_deis(gaussian_denoiser, torch.zeros(1, 1, 1, 1), order=order)


# ------------------------------------------------------------------------------------------------ diffusers


def test_dpmpp_2m_is_that_of_diffusers(noise):
    """Equal to the rounding of float64: theirs gets F(x), of which it makes D(x; t), and our levels."""
    recorder = Recorder(gaussian_denoiser)
    ours = edm2.sample_dpmpp_2m(recorder, noise, num_steps=12, dtype=torch.float64)
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=STD)
    scheduler.set_timesteps(12)
    scheduler.sigmas = edm2.sigma_steps(12, dtype=torch.float64)
    x = 80 * noise
    for i, timestep in enumerate(scheduler.timesteps):
        t = scheduler.sigmas[i]
        torch.testing.assert_close(x, recorder.x[i], rtol=0, atol=1e-11)
        D = gaussian_denoiser(x, t)
        F = (D - STD**2 / (t**2 + STD**2) * x) / (t * STD / (t**2 + STD**2).sqrt())
        x = scheduler.step(F, timestep, x).prev_sample
    torch.testing.assert_close(x, ours, rtol=0, atol=1e-11)


@pytest.mark.parametrize("order", [2, 3])
def test_steps_of_deis_are_those_of_diffusers(noise, order):
    """Equal with a past of full length: theirs does not correct the first step of order 3.

    Theirs is for x / sqrt(1 + t²), gets the slope as its epsilon, and our levels.
    """
    recorder = Recorder(gaussian_denoiser)
    edm2.sample_deis(recorder, noise, num_steps=12, order=order, dtype=torch.float64)
    scheduler = DEISMultistepScheduler(solver_order=order, lower_order_final=False)
    scheduler.set_timesteps(12)
    scheduler.sigmas = edm2.sigma_steps(12, dtype=torch.float64)
    compared = 0
    for i, (x, D, x_next) in enumerate(zip(recorder.x[:-1], recorder.D[:-1], recorder.x[1:], strict=True)):
        t, t_next = scheduler.sigmas[i : i + 2]
        scaled = scheduler.step((x - D) / t, scheduler.timesteps[i], x / (1 + t**2).sqrt()).prev_sample
        if i >= order - 1:
            torch.testing.assert_close(scaled * (1 + t_next**2).sqrt(), x_next, rtol=0, atol=1e-11)
            compared += 1
    assert compared == 12 - order


# ------------------------------------------------------------------------------------------------ their form


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("N", [1, 2, 7])
def test_evaluations_are_as_many_as_announced_at_the_levels_of_sigma_steps(noise, sampler, N):
    """`at_step` is asked once per step, with the level where it begins. The last step ends at the denoised image."""
    recorder, stepped = Recorder(gaussian_denoiser), Stepped()
    options = {"num_steps": N, "sigma_min": 0.01, "sigma_max": 50, "rho": 5, "dtype": torch.float64}
    final = sampler.sample(recorder, noise, **options)
    assert len(recorder.x) == sampler.evaluations(N)
    assert sampler.cost(N).startswith(f"{sampler.evaluations(N)} evaluation")
    assert all(sigma.ndim == 0 and sigma > 0 for sigma in recorder.sigma)
    torch.testing.assert_close(recorder.x[0], 50 * noise, rtol=1e-14, atol=0)
    rounding = 1e-12 if sampler == HEUN else 0  # x - t (x - D) / t, where x is up to 50 times larger than D
    torch.testing.assert_close(final, recorder.D[-1], rtol=0, atol=rounding)
    churn = {"S_churn": 3} if sampler.churns else {}  # raises the level, but not what is asked
    sampler.sample(stepped, noise, **options, **churn)
    assert stepped.asked == edm2.sigma_steps(**options)[:-1].tolist()
    if sampler != HEUN:
        assert torch.equal(torch.stack(recorder.sigma), edm2.sigma_steps(**options)[:-1])


def test_solvers_by_name():
    """Names cost no import of torch."""
    assert {name: sampler.sample for name, sampler in SAMPLERS.items()} == {
        name: getattr(edm2, f"sample_{name}") for name in ("heun", "deis", "dpmpp_2m", "euler")
    }
    assert (HEUN.evaluations(32), SAMPLERS["deis"].evaluations(32)) == (63, 32)
    program = "import sys, edm2.sampling.samplers; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(edm2.__file__).parents[1])


@every_sampler
def test_an_image_depends_on_its_noise_alone(noise, sample):
    """Nothing is drawn, and no gradient recorded; labels pass through, and the dtype is that of the integration."""

    def refuse(x: Tensor) -> Tensor:
        raise AssertionError("a deterministic sampler drew random numbers")

    state, labels, seen = torch.random.get_rng_state(), object(), []
    weight = torch.ones((), requires_grad=True)

    def denoise(x: Tensor, sigma: Tensor, labels: object) -> Tensor:
        seen.append((labels, x.dtype))
        return weight * gaussian_denoiser(x, sigma).half()

    for dtype in (torch.float32, torch.float64):
        options = {"num_steps": 6, "dtype": dtype, "randn_like": refuse}
        together = sample(denoise, noise, labels, **options)
        assert together.dtype == dtype
        assert not together.requires_grad
        for i in range(len(noise)):
            assert torch.equal(sample(denoise, noise[i : i + 1], labels, **options)[0], together[i])
        assert set(seen) == {(labels, dtype)}
        seen.clear()
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
        sample(gaussian_denoiser, noise, num_steps=0)


# ------------------------------------------------------------------------------------------------ guidance


@every_sampler
def test_the_steps_of_an_interval_are_guided_and_one_without_a_step_changes_nothing(noise, sample):
    main, guide = Recorder(gaussian_denoiser), Recorder(lambda x, sigma, labels: 0.5 * x)
    sample(guided(main, guide, 2.0, interval_of_steps(2, 5, 8)), noise, num_steps=8)
    levels = edm2.sigma_steps(8).tolist()
    second = [] if sample != HEUN.sample else levels[3:6]  # evaluations of Heun's method at the ends of these steps
    assert sorted(map(float, guide.sigma), reverse=True) == sorted([*levels[2:5], *second], reverse=True)
    assert len(main.x) == (15 if second else 8)
    never = guided(gaussian_denoiser, guide, 2.0, (100, 200))
    assert torch.equal(sample(never, noise, num_steps=6), sample(gaussian_denoiser, noise, num_steps=6))


def test_where_denoisers_change():
    inner = guided(gaussian_denoiser, gaussian_denoiser, 2.0, (1.0, 5.0))
    assert [changes_between(inner, *levels) for levels in ((6, 5), (5, 2), (2, 1), (1, 0.5))] == [True, False] * 2
    outer = guided(inner, gaussian_denoiser, 1.5), guided(gaussian_denoiser, inner, 1.5)
    assert all(changes_between(denoise, 6, 5) for denoise in (without_labels(inner), *outer))
    never = guided(gaussian_denoiser, gaussian_denoiser, 1.0, (1.0, 5.0))
    assert not any(changes_between(denoise, 6, 5) for denoise in (never, gaussian_denoiser))


@pytest.mark.parametrize("levels", [[10**400, 1, 0], [math.nan, 1, 0], [80, -1, 0], [math.inf, 1, 0], [80, 0], 3])
def test_levels_of_a_snapshot_that_make_no_sense_are_passed_over(levels):
    """It may be a stranger's; the usual levels take their place."""
    assert ways_to_sample({"abilities": ["map", "fly"], "map_levels": {"2": levels}}) == (("map",), MAP_LEVELS)
