"""DPM-Solver++(2M) (Lu et al., arXiv 2211.01095): the denoised image is extrapolated by a line in ln t."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edm2.sampling.samplers.heun import Denoiser, sigma_steps
from edm2.sampling.samplers.multistep import Multistep, Past


def sample_dpmpp_2m(
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
    """DPM-Solver++(2M), a multistep method of order 2; N evaluations.

    Its Algorithm 2, in EDM's variables:

        D' = D + h / (2 h_before) (D - D_before),    h = ln(t / t'),    x' = (t' / t) x + (1 - t' / t) D'

    A step without a past (the first one, and where guidance starts or ends) has D' = D, and is Euler's.

    Args:
        denoise, noise, labels, conditions, num_steps, sigma_min, sigma_max, rho, dtype: As for `edm2.sample_heun`.
        randn_like: Not used: nothing is random.

    Returns:
        Samples like `noise`, in `dtype`.

    Raises:
        ValueError: noise levels that `edm2.sigma_steps` refuses.
    """
    method = Multistep(lambda x, D, t: D, _advance, order=2)
    return method.sample(denoise, noise, labels, conditions, sigma_steps(num_steps, sigma_min, sigma_max, rho, dtype))


def _advance(x: Tensor, t_next: float, past: Past) -> Tensor:
    t, D = past[0]
    if len(past) == 2:
        t_before, D_before = past[1]
        D = D + (D - D_before) * (math.log(t / t_next) / math.log(t_before / t) / 2)
    return D.lerp(x, t_next / t)
