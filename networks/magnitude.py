"""Magnitude-preserving functions without parameters (arXiv 2312.02696v2, Section 2 and Appendix B).

Magnitude means the root-mean-square of a tensor's elements. Shapes: N images, C channels, H by W pixels.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SILU_MAGNITUDE = 0.596
"""Magnitude of silu(x) for x ~ N(0, 1), rounded as in Eq. 81 (exactly 0.59647), so mp_silu has magnitude 1.0008."""


EPS = 1e-4
"""What is added to a magnitude before something is divided by it."""


def normalize(x: Tensor, dim: int | Sequence[int] | None = None, eps: float = EPS, magnitude: float = 1.0) -> Tensor:
    """Scale `x` to unit magnitude over `dim` (Eqs. 30 and 47).

        y = x / (eps + rms(x)),    rms over `dim`

    `eps` is added to the root-mean-square, not under the root: a vector of magnitude r gets magnitude r / (r + eps).

    Args:
        x: Any shape. Half-precision inputs have their root-mean-square summed in float32.
        dim: Dimensions that share one scale; default all but the first (one scale per output unit of a weight).
        eps: Keeps zeros finite.
        magnitude: Multiplies y, at no cost; any number but 0.

    Returns:
        Same shape and dtype as `x`. It can be differentiated once; see `higher_derivatives`.
    """
    if dim is None:
        dim = range(1, x.ndim)
    dims = [dim] if isinstance(dim, int) else list(dim)
    if takes_higher_derivatives():
        return x / _divisor(x, dims, eps, magnitude).to(x.dtype)
    return Normalize.apply(x, dims, eps, magnitude)


def _divisor(x: Tensor, dims: Sequence[int], eps: float, magnitude: float) -> Tensor:
    """s of `Normalize`, in at least float32; `dims` keep length 1."""
    norm = euclidean_norm(x, dims)
    n = x.numel() // norm.numel()
    return norm * (math.sqrt(1 / n) / magnitude) + eps / magnitude


_higher_derivatives = False


@contextmanager
def higher_derivatives() -> Iterator[None]:
    """Inside, networks of this package take more than one derivative, and forward ones.

    So a Jacobian-vector product (`torch.func.jvp`, forward-mode AD), as consistency models and mean flows need, or a
    penalty on a gradient can be computed; passes take longer and keep more. Outputs stay the same up to rounding.
    """
    global _higher_derivatives
    before, _higher_derivatives = _higher_derivatives, True
    try:
        yield
    finally:
        _higher_derivatives = before


def takes_higher_derivatives() -> bool:
    """Whether this is inside `higher_derivatives`."""
    return _higher_derivatives


class Normalize(torch.autograd.Function):
    """`normalize` with its gradient by hand: four passes over memory, where autograd would make ten.

        y = x / s,    s = (eps + r) / m,    r = rms(x)
        dL/dx = (g - x <g, x> / (n r m s)) / s,    g = dL/dy

    for sums <,> over n elements and magnitude m: it takes away what points along x, all of it but for eps. Of
    parameters x is kept, which is there anyway; of activations y, which the next layer keeps.
    """

    @staticmethod
    def forward(ctx, x: Tensor, dims: list[int], eps: float, m: float) -> Tensor:
        s = _divisor(x, dims, eps, m)
        ctx.n = x.numel() // s.numel()
        y = x / s.to(x.dtype)
        ctx.keeps_input = isinstance(x, nn.Parameter)
        ctx.save_for_backward(x if ctx.keeps_input else y, s)
        ctx.dims, ctx.eps, ctx.m = dims, eps, m
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None, None]:
        kept, s = ctx.saved_tensors
        along = (g * kept).sum(ctx.dims, keepdim=True, dtype=s.dtype)
        if ctx.keeps_input:
            a = s * ctx.m
            square = (a - ctx.eps).mul_(a)  # r m s, above
        else:
            square = ctx.m**2 - ctx.m * ctx.eps / s  # r m / s
        share = along.div_(square.clamp_min_(TINY).mul_(ctx.n))  # zeros have no direction: there, `along` is 0, too
        return torch.addcmul(g, kept, share.to(g.dtype), value=-1).div_(s.to(g.dtype)), None, None, None


def euclidean_norm(x: Tensor, dims: Sequence[int]) -> Tensor:
    """sqrt(sum of x² over `dims`), which keep length 1; summed and returned in at least float32."""
    wide = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    return torch.linalg.vector_norm(x, dim=list(dims), keepdim=True, dtype=wide)


TINY = 1e-30
"""Less than any square of a magnitude but zero."""


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of a unit Gaussian (Eq. 81): silu(x) / 0.596. Same shape and dtype as `x`."""
    return F.silu(x) / SILU_MAGNITUDE


def modulated_silu(x: Tensor, scale: Tensor) -> Tensor:
    """silu(x scale), in the memory of `x` where no gradient will be asked for.

    Args:
        x: [N, C, H, W]; nobody else may need it.
        scale: Broadcasts to the shape of `x`.
    """
    if torch.is_grad_enabled():
        return F.silu(x * scale)
    return F.silu(x.mul_(scale), inplace=True)


def mp_sum_weights(t: float = 0.5) -> tuple[float, float]:
    """What `mp_sum` multiplies its branches by: (1 - t) / hypot(1 - t, t) and t / hypot(1 - t, t)."""
    return (1 - t) / math.hypot(1 - t, t), t / math.hypot(1 - t, t)


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


def mp_cat_weights(n_a: int, n_b: int, t: float = 0.5) -> tuple[float, float]:
    """w_a and w_b of `mp_cat`. Branches of equally many channels have equal ones, and at t = 0.5 they are 1."""
    k = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return k * (1 - t) / math.sqrt(n_a), k * t / math.sqrt(n_b)


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
    w_a, w_b = mp_cat_weights(a.shape[dim], b.shape[dim], t)
    return torch.cat([_times(a, w_a), _times(b, w_b)], dim=dim)


def _times(x: Tensor, factor: float) -> Tensor:
    """x times a constant; a constant of 1, up to rounding, costs nothing."""
    return x if math.isclose(factor, 1, rel_tol=1e-12) else x * factor


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
