"""Magnitude-preserving functions without parameters (arXiv 2312.02696v2, Section 2 and Appendix B).

Magnitude means the root-mean-square of a tensor's elements. Shapes: N images, C channels, H by W pixels.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-4
"""Number added to a magnitude before something is divided by it."""

SILU_MAGNITUDE = 0.596
"""Magnitude of silu(x) for x ~ N(0, 1), rounded as in Eq. 81 (exactly 0.59647), so mp_silu has magnitude 1.0008."""

TINY = 1e-30
"""Smaller than any square of a magnitude except zero."""


def normalize(x: Tensor, dim: int | Sequence[int] | None = None, eps: float = EPS, *, magnitude: float = 1.0) -> Tensor:
    """Scale `x` to unit magnitude over `dim` (Eqs. 30 and 47).

        y = x / (eps + rms(x)),    rms over `dim`

    `eps` is added to the root-mean-square, not under the root: a vector of magnitude r gets magnitude r / (r + eps).
    Derivatives of any order, backward and forward (`torch.func.jvp`), and `torch.func.vmap` work.

    Args:
        x: Any shape. Half-precision inputs have their root-mean-square summed in float32.
        dim: Dimensions that share one scale; default all but the first (one scale per output unit of a weight).
        eps: Keeps zeros finite.
        magnitude: Magnitude to scale to instead of 1; not 0. It saves a pass over memory.

    Returns:
        Same shape and dtype as `x`.
    """
    if dim is None:
        dim = range(1, x.ndim)
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    function = Normalize if torch.compiler.is_compiling() else NormalizeWithJvp  # Dynamo traces no custom jvp
    y, _ = function.apply(x, dims, eps, magnitude, isinstance(x, nn.Parameter))
    return y


class Normalize(torch.autograd.Function):
    """`normalize` with its gradient by hand: four passes over memory where autograd would make ten.

        y = x / s,    s = (eps + r) / m,    r = rms(x),    ds/dx = x / (n r m)
        dL/dx = (g - x (<g, x> / s - s g_s) / (n r m)) / s,    g = dL/dy,  g_s = dL/ds

    for magnitude m and sums <,> over n elements: the gradient loses its component along x (all but for eps). Of
    parameters x is kept for it, which is in memory anyway; of activations y, which the next layer keeps.

    s is returned, too. As an output it has a derivative of its own, so the backward pass, which consists of
    differentiable operations on s and x (or y), can be differentiated again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dims: tuple[int, ...], eps: float, m: float, keep_input: bool) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=wide)
        n = x.numel() // norm.numel()  # an integer, in which the batch of a graph for any batch cancels
        s = norm * (math.sqrt(1 / n) / m) + eps / m
        return x / s.to(x.dtype), s

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.dims, ctx.eps, ctx.m, ctx.keep_input = inputs
        y, s = output
        ctx.n = x.numel() // s.numel()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.keep_input else y, s)
        if not torch.compiler.is_compiling():
            ctx.save_for_forward(x, s)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_s: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, s = ctx.saved_tensors
        g = torch.zeros_like(kept) if g is None else g
        m2_n, eps_m_n = ctx.m**2 * ctx.n, ctx.eps * ctx.m * ctx.n
        along = (g * kept).sum(ctx.dims, keepdim=True, dtype=s.dtype)
        # n r m s for <g, x>, n r m / s for <g, y>
        square = s * (s * m2_n - eps_m_n) if ctx.keep_input else m2_n - eps_m_n / s
        if g_s is not None:
            along = along - g_s * (s**2 if ctx.keep_input else s)
        coef = along / square.clamp_min(TINY)  # zeros have no direction: there `along` is 0 as well
        return torch.addcmul(g, kept, coef.to(g.dtype), value=-1).div_(s.to(g.dtype)), None, None, None, None


class NormalizeWithJvp(Normalize):
    """`Normalize` with a derivative in forward mode: ds = <x, dx> / (n r m), dy = (dx - y ds) / s."""

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> tuple[Tensor, Tensor]:
        x, s = ctx.saved_tensors
        r_m = (s * ctx.m - ctx.eps) * ctx.m
        ds = (x * dx).sum(ctx.dims, keepdim=True, dtype=s.dtype) / (ctx.n * r_m.clamp_min(TINY))
        y = x / s.to(x.dtype)
        return (dx - y * ds.to(x.dtype)) / s.to(x.dtype), ds


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of a unit Gaussian (Eq. 81): silu(x) / 0.596. Same shape and dtype as `x`."""
    return F.silu(x) / SILU_MAGNITUDE


def mp_sum_weights(t: float = 0.5) -> tuple[float, float]:
    """Weights of the two branches of `mp_sum`: (1 - t) / hypot(1 - t, t) and t / hypot(1 - t, t)."""
    return (1 - t) / math.hypot(1 - t, t), t / math.hypot(1 - t, t)


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Blend two branches without changing their magnitude (Eq. 88).

        y = ((1 - t) a + t b) / sqrt((1 - t)² + t²)

    Args:
        a: Main branch, any shape.
        b: Residual branch, shaped like `a`.
        t: Balance: 0 keeps `a`, 1 keeps `b`.

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
        t: Balance, as in `mp_sum`.

    Returns:
        N_a + N_b channels along `dim`; magnitude 1 if both inputs have magnitude 1.
    """
    N_a, N_b = a.shape[dim], b.shape[dim]
    if N_a == N_b and t == 0.5:  # both weights are 1
        return torch.cat([a, b], dim=dim)
    K = math.sqrt((N_a + N_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (K * (1 - t) / math.sqrt(N_a)), b * (K * t / math.sqrt(N_b))], dim=dim)


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
        [N, C, H/2, W/2], [N, C, 2H, 2W] or `x`; same dtype. A constant image keeps its value, but for borders, where
        filters of more than two taps meet zeros.
    """
    if mode == "keep":
        return x
    if tuple(filter) == (1, 1):
        return F.avg_pool2d(x, 2) if mode == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
    channels = x.shape[1]
    taps = torch.tensor(filter, dtype=torch.float32, device=x.device)
    taps = taps / taps.sum()
    kernel = torch.outer(taps, taps).to(x.dtype).expand(channels, 1, -1, -1)  # one 2-D filter per channel
    padding = (len(filter) - 1) // 2
    if mode == "down":
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)
