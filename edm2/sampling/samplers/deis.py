"""DEIS (Zhang and Chen, arXiv 2204.13902): the slope is extrapolated by a polynomial, and integrated."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from edm2.sampling.samplers.heun import Denoiser, sigma_steps
from edm2.sampling.samplers.multistep import Multistep, Past, slope

ORDERS = (1, 2, 3)

GAUSS_POINTS, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(20)
"""Quadrature that integrates e^u times a parabola to rounding over any step of sampling: ln(80 / 0.002) is 10.6."""


def sample_deis(
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
    order: int = 3,
) -> Tensor:
    """DEIS, a multistep method of order 3; N evaluations.

        x(t') = x(t) + ∫ P(ln s) ds,    P the polynomial through the latest d(t_j) = (x_j - D_j) / t_j over ln t_j

    In EDM's variables the exponential integrator of the paper is the Adams-Bashforth method of variable step for
    dx/dt = d, but with a polynomial in ln t in place of t: noise levels are spread over ln t, and d is smoother there.

    A step without a past (the first one, and where guidance starts or ends) is Euler's, and corrected as Heun's by
    the slope that the next step evaluates anyway.

    Args:
        denoise, noise, labels, conditions, num_steps, sigma_min, sigma_max, rho, dtype: As for `edm2.sample_heun`.
        randn_like: Not used: nothing is random.
        order: Number of evaluations behind a step: 1 (Euler's method), 2 or 3.

    Returns:
        Samples like `noise`, in `dtype`.

    Raises:
        ValueError: another order; noise levels that `edm2.sigma_steps` refuses.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order} must be 1, 2 or 3")
    method = Multistep(slope, _advance, order, _corrected if order > 2 else None)
    return method.sample(denoise, noise, labels, conditions, sigma_steps(num_steps, sigma_min, sigma_max, rho, dtype))


def deis_weights(levels: Sequence[float], t_next: float) -> list[float]:
    """Weights of the slopes at `levels`, the latest first, in the step from the first of them to `t_next`.

        w_j = ∫ prod_{k != j} (ln s - ln t_k) / (ln t_j - ln t_k) ds,    s from t_0 to t_next

    By quadrature over u = ln s, where closed forms lose digits in short steps.
    """
    nodes = [math.log(level) for level in levels]
    half_width = (math.log(t_next) - nodes[0]) / 2
    u = nodes[0] + half_width * (1 + GAUSS_POINTS)
    ds = np.exp(u) * GAUSS_WEIGHTS * half_width
    return [float(ds @ _lagrange(u, nodes, j)) for j in range(len(nodes))]


def _lagrange(u: np.ndarray, nodes: Sequence[float], j: int) -> np.ndarray:
    """Polynomial that is 1 at node j and 0 at the others, at `u`."""
    factors = [(u - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j]
    return np.prod(factors, axis=0) if factors else np.ones_like(u)


def _advance(x: Tensor, t_next: float, past: Past) -> Tensor:
    for weight, (_, d) in zip(deis_weights([t for t, _ in past], t_next), past, strict=True):
        x = torch.add(x, d, alpha=weight)
    return x


def _corrected(x: Tensor, past: Past) -> Tensor:
    (t, d), (t_before, d_before) = past
    return x + (t - t_before) * (d + d_before) / 2
