"""Heun's method: from noise to data along the probability-flow ODE (EDM's Algorithm 2, arXiv 2206.00364)."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

Denoiser = Callable[..., Tensor]
"""denoise(x, sigma, labels) -> D(x; sigma), for x [N, C, H, W] and a 0-dimensional sigma; `conditions=` if given."""


def sigma_steps(
    num_steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Noise levels t_0 > t_1 > ... > t_N = 0 of a sampler with N steps.

        t_i = (sigma_max^(1/rho) + i / (N - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho    for i < N

    Returns:
        [N + 1] in `dtype`, computed on the CPU, so that all devices get the same numbers and none has to be waited for,
        then moved to `device`. A single step goes from sigma_max straight to 0.

    Raises:
        ValueError: fewer than one step, or levels that do not descend (in `dtype`).
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min} and sigma_max={sigma_max} must satisfy 0 < sigma_min < sigma_max")
    if not rho > 0:
        raise ValueError(f"rho={rho} must be positive")
    index = torch.arange(num_steps, dtype=dtype, device="cpu")
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = (start + index / max(num_steps - 1, 1) * (end - start)) ** rho
    steps = torch.cat([levels, levels.new_zeros(1)])
    if not (steps.diff() < 0).all():  # sigma_min may be lost to rounding, and level 0 has no slope
        raise ValueError(
            f"{num_steps} noise levels from {sigma_max} to {sigma_min} with rho={rho} do not descend in {dtype}; "
            "change rho, or take fewer steps or float64"
        )
    return steps if device is None else steps.to(device)


def denoiser_at_step(denoiser: Denoiser, sigma: Tensor | float) -> Denoiser:
    """Denoiser for a step that begins at `sigma`: that of `denoiser.at_step`, if defined, else `denoiser` itself.

    Raises:
        ValueError: a network that was trained to be a map alone.
    """
    if "denoise" not in getattr(denoiser, "abilities", ("denoise",)):
        raise ValueError("this network is a map and no denoiser: draw with edm2.sample_map (--solver map)")
    return denoiser.at_step(sigma) if hasattr(denoiser, "at_step") else denoiser


def with_conditions(denoiser: Denoiser, conditions: Mapping[str, Tensor] | None) -> Denoiser:
    """Denoiser that gets `conditions` in each call; `denoiser` itself without any, which need not know of them."""
    return denoiser if conditions is None else partial(denoiser, conditions=conditions)


@torch.no_grad()
def sample_heun(
    denoise: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    conditions: Mapping[str, Tensor] | None = None,
    num_steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = math.inf,
    S_noise: float = 1,
    dtype: torch.dtype = torch.float32,
    randn_like: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Heun's second-order method with optional churn (EDM's Algorithm 2); 2N - 1 evaluations.

    Args:
        denoise: Any callable D(x, sigma, labels). If it has a method `at_step(sigma)`, that is called once per step
            with the level where the step begins, and returns the denoiser for the step.
        noise: Unit Gaussian noise [N, C, H, W].
        labels: Passed to `denoise` as they are.
        conditions: Passed to `denoise` by keyword, if given.
        num_steps, sigma_min, sigma_max, rho: See `sigma_steps`.
        S_churn: Amount of fresh noise per image over all steps; 0 makes sampling deterministic.
        S_min, S_max: Noise levels between which fresh noise is added.
        S_noise: Standard deviation of the fresh noise.
        dtype: dtype of the integration; the denoiser sees its input in it.
        randn_like: Function that draws the fresh noise; default: `torch.randn_like`.

    Returns:
        Samples like `noise`, in `dtype`.
    """
    randn_like = torch.randn_like if randn_like is None else randn_like
    t_steps = sigma_steps(num_steps, sigma_min, sigma_max, rho, dtype)  # t_0 > ... > t_N = 0
    levels = t_steps.tolist()  # on the CPU, so that no step waits for another device
    t_steps = t_steps.to(noise.device)
    x = noise.to(dtype) * t_steps[0]
    for i, (t, t_next) in enumerate(pairwise(t_steps)):
        step_denoiser = with_conditions(denoiser_at_step(denoise, levels[i]), conditions)

        if S_churn > 0 and S_min <= levels[i] <= S_max:  # raise the noise level a little (lines 5 and 6)
            gamma = min(S_churn / num_steps, math.sqrt(2) - 1)
            t_hat = t + gamma * t
            x = x + (t_hat**2 - t**2).sqrt() * S_noise * randn_like(x)
        else:
            t_hat = t

        d = (x - step_denoiser(x, t_hat, labels).to(dtype)) / t_hat  # dx/dt at t_hat
        x_next = x + (t_next - t_hat) * d  # Euler step
        if i < num_steps - 1:  # second-order correction
            d_next = (x_next - step_denoiser(x_next, t_next, labels).to(dtype)) / t_next
            x_next = x + (t_next - t_hat) * (d + d_next) / 2
        x = x_next
    return x
