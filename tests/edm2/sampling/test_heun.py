"""The sampler equals the published one step by step, and solves differential equations of known solution."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from golden_data import arrays, max_rel, present, select, table
from known_denoisers import (
    MEAN,
    STD,
    Recorder,
    gaussian_denoiser,
    gaussian_solution,
    golden_mixtures,
    golden_network,
)  # fmt: skip
from torch import Tensor

import edm2
from edm2.sampling.generation import SeedRandom
from edm2.sampling.samplers.heun import Denoiser

DTYPES = {"float32": torch.float32, "float64": torch.float64}
OPTIONS = ("num_steps", "sigma_min", "sigma_max", "rho", "S_churn", "S_min", "S_max", "S_noise")


# ------------------------------------------------------------------------------------------------ golden/sampler


def stored_noise(noise: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A `randn_like` that hands out stored draws in order."""
    draws = iter([] if noise is None else noise)
    return lambda x: next(draws).to(x.dtype)


def runs(golden, kind: str) -> list[dict[str, Any]]:
    """Runs whose options are all understood: one with an option that is ignored would compare the wrong thing."""
    found = [run for run in table(golden, "sampler/sampler.json")["runs"] if run.get("denoiser") == kind]
    known = {*OPTIONS, "id", "dtype", "denoiser", "churn_steps", "guidance"}
    assert all(set(run) <= known for run in found)
    return present(found, arrays(golden, "sampler/sampler.safetensors"))


def check_run(golden, run: dict[str, Any], main: Denoiser, guide: Denoiser, tolerance: float) -> float:
    """Compare every evaluation of a run; returns the error of the samples."""
    expected = select(arrays(golden, "sampler/sampler.safetensors"), run["id"])
    N, dtype = run["num_steps"], DTYPES[run["dtype"]]
    main, guide = Recorder(main), Recorder(guide)
    denoise = edm2.guided(main, guide, run["guidance"]) if "guidance" in run else main
    options = {name: run[name] for name in OPTIONS if name in run}
    final = edm2.sample_heun(
        denoise, expected["noise"], expected["labels"], dtype=dtype,
        randn_like=stored_noise(expected.get("churn_noise_used")), **options,
    )  # fmt: skip
    called = guide if run.get("guidance") == 0 else main  # a guide of weight 0 never asks the main denoiser
    x, sigma = torch.stack(called.x), torch.stack(called.sigma)
    schedule = {name: value for name, value in options.items() if not name.startswith("S_")}

    def close(name: str, ours: Tensor, target: Tensor, tol: float = tolerance) -> None:
        assert max_rel(ours, target) <= tol, f"{run['id']}: {name}"

    assert final.dtype == dtype
    assert len(called.x) == 2 * N - 1, run["id"]
    grid_tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    close("t_steps", edm2.sigma_steps(**schedule, dtype=dtype), expected["t_steps"], grid_tolerance)
    close("t_hat", sigma[::2], expected["t_hat"], grid_tolerance)
    close("second level", sigma[1::2], expected["t_steps"][1:-1], grid_tolerance)
    for i in range(N):
        close(f"x_hat {i}", x[::2][i], expected["x_hat"][i])
    for i in range(N - 1):
        close(f"x_euler {i}", x[1::2][i], expected["x_euler"][i])
    for name, recorder in (("D_main", main), ("D_guide", guide)):
        if name in expected and recorder.D:
            ours = torch.stack(recorder.D[: len(expected[name])])
            for i, target in enumerate(expected[name]):
                close(f"{name} {i}", ours[i], target)
    close("final", final, expected["final"])
    return max_rel(final, expected["final"])


def test_published_runs(golden):
    """Schedules, guidance and churn, every intermediate state included, around the closed-form denoiser and around tiny
    networks. 2e-5: float32 rounding of the networks (5e-6 each evaluation) over the steps."""
    for run in runs(golden, "gmm"):
        # Few steps are long steps: rounding of the first levels, near 80, weighs more in the result.
        single = 1e-4 if run["num_steps"] <= 3 else 1e-5
        check_run(golden, run, *golden_mixtures(golden), 1e-12 if run["dtype"] == "float64" else single)
    main, guide = golden_network(golden, "net"), golden_network(golden, "gnet")
    for run in runs(golden, "network"):
        check_run(golden, run, main, guide, 2e-5)


# ------------------------------------------------------------------------------------------------ noise levels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("N", [2, 3, 18, 32, 256])
@pytest.mark.parametrize(("low", "high", "rho"), [(0.002, 80, 7), (0.01, 50, 5), (0.1, 1, 1)])
def test_levels_descend_from_sigma_max_over_sigma_min_to_zero(N, low, high, rho, dtype):
    steps = edm2.sigma_steps(N, low, high, rho, dtype=dtype)
    # Raising to the power rho magnifies the relative rounding error of the root by rho; a linear schedule (rho = 1)
    # instead has the absolute rounding error of sigma_max at its small end.
    tolerance = 4 * torch.finfo(dtype).eps * max(rho, high / low if rho == 1 else 0)
    assert steps.dtype == dtype
    assert steps.shape == (N + 1,)
    assert (steps.diff() < 0).all()
    assert steps[-1] == 0
    assert steps[0].item() == pytest.approx(high, rel=tolerance)
    assert steps[-2].item() == pytest.approx(low, rel=tolerance)
    roots = edm2.sigma_steps(N, low, high, rho, dtype=torch.float64)[:-1] ** (1 / rho)
    spacing = roots.diff()
    assert (spacing / spacing.mean() - 1).abs().max() < 1e-9  # float64, relative to steps of 1/256 of the range
    single = edm2.sigma_steps(1, low, high, rho, dtype=dtype)  # where the published formula divides by zero
    assert single.tolist() == pytest.approx([high, 0], rel=tolerance)


@pytest.mark.parametrize(
    "wrong",
    [
        *[{"num_steps": value} for value in (0, -3)],
        *[{"sigma_min": value} for value in (0, -1, 80, math.nan)],
        {"sigma_max": math.inf},
        *[{"rho": value} for value in (0, -7, math.inf)],
        {"rho": 0.5},  # sigma_min would be lost to rounding in float32, and the sampler divide by zero
    ],
    ids=str,
)
def test_impossible_levels_are_refused_in_one_line(wrong):
    with pytest.raises(ValueError) as error:
        edm2.sigma_steps(**wrong)
    assert "\n" not in str(error.value)
    assert str(next(iter(wrong.values()))) in str(error.value)


# ------------------------------------------------------------------------------- problems with a known solution


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_heun_converges_with_order_two(noise):
    """The error falls fourfold when the steps double.

    sigma_min = 1e-7 takes the last, first-order step out of the picture: its error is below sigma_min² / STD². The
    margin of 0.1 is what higher orders still contribute with these numbers of steps.
    """
    steps = [64, 128, 256]
    exact = gaussian_solution(80 * noise, 80)
    errors = [
        (edm2.sample_heun(gaussian_denoiser, noise, num_steps=N, sigma_min=1e-7, dtype=torch.float64) - exact)
        .abs()
        .max()
        for N in steps
    ]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([2, 2], abs=0.1)


def test_churn_keeps_the_distribution():
    """Fresh noise raises the noise level by as much as it is said to, so samples stay distributed like the data.

    Tolerances are four standard errors (0.9 % for the deviation), and 0.3 % for the finite steps: measured from 64 to
    512 steps, the error of the deviation falls from 2 % to 0.1 %.
    """
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(100_000, 1, 1, 1, generator=generator)
    samples = edm2.sample_heun(
        gaussian_denoiser,
        noise,
        num_steps=256,
        S_churn=40,
        randn_like=lambda x: torch.randn(x.shape, generator=generator),
    )
    assert not torch.allclose(samples, gaussian_solution(80 * noise, 80), atol=0.1)  # other images, though
    assert samples.mean().item() == pytest.approx(MEAN, abs=4 * STD / 100_000**0.5)
    assert samples.std().item() == pytest.approx(STD, rel=0.012)


def test_churn_is_confined_to_its_noise_levels(noise):
    """Both ends included: here they are levels of the schedule."""
    levels = edm2.sigma_steps(10)[:-1].tolist()
    drawn_at = []
    recorder = Recorder(gaussian_denoiser)

    def randn_like(x: Tensor) -> Tensor:
        drawn_at.append(len(recorder.x) // 2)
        return torch.zeros_like(x)

    options = {"S_churn": 5, "S_min": levels[6], "S_max": levels[2], "randn_like": randn_like}
    edm2.sample_heun(recorder, noise, num_steps=10, **options)
    assert drawn_at == [2, 3, 4, 5, 6]


# ------------------------------------------------------------------------------------------------ draws from seeds


def test_draws_are_the_published_ones(golden):
    """Noise, class, then churn noise in two dtypes, per image from a generator of its own: exact."""
    draws = select(arrays(golden, "sampler/sampler.safetensors"), "draws")
    seeds = draws["seeds"].tolist()
    random = SeedRandom(seeds)
    shape = draws["1_randn"].shape[1:]
    assert torch.equal(random.randn(shape), draws["1_randn"])
    assert torch.equal(random.randint(1000), draws["2_randint_1000"])
    for dtype in ("float32", "float64"):
        name = f"{3 if dtype == 'float32' else 4}_randn_like_{dtype}"
        assert torch.equal(random.randn_like(torch.empty(len(seeds), *shape, dtype=DTYPES[dtype])), draws[name])
    fresh = SeedRandom(seeds)
    assert torch.equal(fresh.randn((3, 64, 64))[:, :, 0], draws["b1_randn_3x64x64_first_row"])
    assert torch.equal(fresh.randint(1000), draws["b2_randint_1000"])
