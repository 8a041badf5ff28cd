"""Euler's method: the slope is constant within a step."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edm2.sampling.samplers.deis import sample_deis
from edm2.sampling.samplers.heun import Denoiser


def sample_euler(
    denoise: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    conditions: Mapping[str, Tensor] | None = None,
    num_steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    dtype: torch.dtype = torch.float32,
    randn_like: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Euler's method, of order 1, which is DDIM, and DEIS and DPM-Solver++ without a past; N evaluations.

        x' = x + (t' - t) d,    d = (x - D(x; t)) / t

    Args:
        denoise, noise, labels, conditions, num_steps, sigma_min, sigma_max, rho, dtype: As for `edm2.sample_heun`.
        randn_like: Not used: nothing is random.

    Returns:
        Samples like `noise`, in `dtype`.

    Raises:
        ValueError: noise levels that `edm2.sigma_steps` refuses.
    """
    return sample_deis(
        denoise,
        noise,
        labels,
        conditions=conditions,
        num_steps=num_steps,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        rho=rho,
        dtype=dtype,
        order=1,
    )
