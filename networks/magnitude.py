"""Magnitude-preserving functions without parameters (arXiv 2312.02696v2, Section 2 and Appendix B).

Magnitude means the root-mean-square of a tensor's elements. Shapes: N images, C channels, H by W pixels.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SILU_MAGNITUDE = 0.596
"""Magnitude of silu(x) for x ~ N(0, 1), rounded as in Eq. 81 (exactly 0.59647), so mp_silu has magnitude 1.0008."""


def normalize(x: Tensor, dim: int | Sequence[int] | None = None, eps: float = 1e-4) -> Tensor:
    """Scale `x` to unit magnitude over `dim` (Eqs. 30 and 47).

        y = x / (eps + rms(x)),    rms over `dim`

    `eps` is added to the root-mean-square, not under the root: a vector of magnitude r gets magnitude r / (r + eps).

    Args:
        x: Any shape. Half-precision inputs have their root-mean-square summed in float32.
        dim: Dimensions that share one scale; default all but the first (one scale per output unit of a weight).
        eps: Keeps zeros finite.

    Returns:
        Same shape and dtype as `x`.
    """
    if dim is None:
        dim = tuple(range(1, x.ndim))
    accumulate = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=accumulate)
    scale = eps + norm * math.sqrt(norm.numel() / x.numel())
    return x / scale.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of a unit Gaussian (Eq. 81): silu(x) / 0.596. Same shape and dtype as `x`."""
    return F.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Blend two branches without changing their magnitude (Eq. 88).

        y = ((1 - t) a + t b) / sqrt((1 - t)² + t²)

    Args:
        a: Main branch, any shape.
        b: Residual branch, shaped like `a`.
        t: Share of `b`: 0 keeps `a`, 1 keeps `b`.

    Returns:
        Same shape; magnitude 1 if `a` and `b` have magnitude 1 and are uncorrelated.
    """
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, dim: int = 1, t: float = 0.5) -> Tensor:
    """Concatenate two branches so that their contributions to the squared norm stand in a chosen ratio (Eq. 103).

        y = concat(w_a a, w_b b),    w_a = K (1 - t) / sqrt(N_a),    w_b = K t / sqrt(N_b),
        K = sqrt((N_a + N_b) / ((1 - t)² + t²))

    Args:
        a: First branch with N_a channels along `dim`.
        b: Second branch with N_b channels along `dim`.
        dim: Dimension to concatenate along.
        t: Share of `b`, as in `mp_sum`.

    Returns:
        N_a + N_b channels along `dim`; magnitude 1 if both inputs have magnitude 1.
    """
    n_a, n_b = a.shape[dim], b.shape[dim]
    k = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (k * (1 - t) / math.sqrt(n_a)), b * (k * t / math.sqrt(n_b))], dim=dim)


ResampleMode = Literal["keep", "down", "up"]


def resample(x: Tensor, mode: ResampleMode, filter: Sequence[float] = (1, 1)) -> Tensor:
    """Halve or double the resolution with a separable FIR filter f, normalized to sum 1.

        down:  y[i]          =  sum_a f[a] x[2 i - p + a]
        up:    y[2 i - p + a] += 2 f[a] x[i]            per axis, p = (len(f) - 1) // 2

    Args:
        x: [N, C, H, W].
        mode: "keep" returns `x` itself.
        filter: Taps of even length; (1, 1) averages 2x2 pixels downwards and repeats pixels upwards.

    Returns:
        [N, C, H/2, W/2], [N, C, 2H, 2W] or `x`; same dtype. A constant image keeps its value.
    """
    if mode == "keep":
        return x
    if tuple(filter) == (1, 1):
        return F.avg_pool2d(x, 2) if mode == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
    channels = x.shape[1]
    taps = torch.tensor(filter, dtype=torch.float32, device=x.device)
    taps = taps / taps.sum()
    kernel = torch.outer(taps, taps).to(x.dtype).expand(channels, 1, -1, -1)
    padding = (len(filter) - 1) // 2
    if mode == "down":
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)
