"""Layers with weights, and the forced normalization of these weights (Appendix B.4, B.5, B.7)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.magnitude import EPS, normalize


class Fourier(nn.Module):
    """Random Fourier features of a scalar (Eqs. 35 and 36).

        y_j = amplitude cos(f_j x + p_j),    f_j = 2π N(0, 1) bandwidth,    p_j = 2π U(0, 1)

    Frequencies and phases are buffers: drawn once, never trained.
    """

    amplitude = 1.0
    """Height of the cosines."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int, bandwidth: float = 1) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * bandwidth * torch.randn(num_channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, num_channels] in the dtype of `x`; at least float32 inside, because the angles are large."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        angles = torch.outer(x.to(dtype), self.freqs.to(dtype)) + self.phases.to(dtype)
        return (self.amplitude * angles.cos()).to(x.dtype)


class MPFourier(Fourier):
    """Fourier features of unit magnitude (Eq. 75): sqrt(2) cos(f_j x + p_j)."""

    amplitude = math.sqrt(2)


class Conv(nn.Module, ABC):
    """Convolution or linear layer: y = x * w' + b, for effective weights w' that a subclass derives from its parameter.

    Args:
        weight: Initial parameter: [out, in] for a linear layer, [out, in, k, k] with odd k for a convolution with zero
            padding.
        bias: Initial bias [out], or None for a layer without.
    """

    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    @abstractmethod
    def effective_weight(self) -> Tensor:
        """Return w', shaped like the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out], or [N, in, H, W] -> [N, out, H, W]; computed in the dtype of `x`."""
        return apply_weight(x, self.effective_weight(), self.bias)


class WeightNormConv(Conv):
    """Layer without bias whose weights have unit magnitude per output unit where they are used (Eqs. 47 and 66).

        y = x * w',    w' = scale gain normalize(w) / sqrt(fan_in)

    Only the direction of each output unit's weights matters. The normalization is part of the forward pass because the
    gradient must see it; `forward` never changes the parameter, which starts as N(0, 1).

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: () for a linear layer, (k, k) with odd k for a convolution with zero padding.
        scale: Constant that the input or the output would otherwise be multiplied by. Activations are many more than
            weights, so a constant of the network costs nothing here.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = (), scale: float = 1.0) -> None:
        super().__init__(torch.randn(out_channels, in_channels, *kernel))
        self.scale = scale

    def effective_weight(self, gain: Tensor | float = 1) -> Tensor:
        """Return w', in at least float32; shaped like the parameter."""
        w = self.weight if self.weight.dtype.itemsize >= 4 else self.weight.float()
        root = math.sqrt(w[0].numel())
        if isinstance(gain, Tensor) or not gain * self.scale:  # `normalize` has no magnitude 0
            return normalize(w) * (gain / root * self.scale)
        return normalize(w, magnitude=gain / root * self.scale)

    def forward(self, x: Tensor, gain: Tensor | float = 1) -> Tensor:
        """[N, in] -> [N, out], or [N, in, H, W] -> [N, out, H, W]; computed in the dtype of `x`."""
        return apply_weight(x, self.effective_weight(gain))


class MPConv(WeightNormConv):
    """Magnitude-preserving layer: its weights are normalized on use and, by `force_weight_normalization_`, for good.

    The parameter itself then has unit magnitude per output unit, up to one update of the optimizer.
    """


def apply_weight(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by a matrix [out, in], or convolve with a kernel [out, in, k, k] and zero padding k // 2."""
    w = w.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if w.ndim == 2:
        return F.linear(x, w, bias)
    return F.conv2d(x, w, bias, padding=(w.shape[-2] // 2, w.shape[-1] // 2))


@torch.no_grad()
def force_weight_normalization_(module: nn.Module) -> None:
    """Overwrite the weight of every `MPConv` inside `module` by its normalized self (Algorithm 1).

    Called once per training step, before the forward pass, it keeps the effective learning rate of every layer under
    the control of the schedule: weights cannot grow, and their updates stay as large as Adam made them. It happens
    outside autograd and in place, so the optimizer's reference to the parameter stays valid.
    """
    weights, magnitudes, scales = [], [], []
    for layer in module.modules():
        if isinstance(layer, MPConv):
            w: Tensor = layer.weight
            w = w.to_local() if hasattr(w, "to_local") else w  # this process's rows of a DTensor; there may be none
            wide, fan_in = torch.promote_types(w.dtype, torch.float32), math.prod(w.shape[1:])
            norm = torch.linalg.vector_norm(w, dim=tuple(range(1, w.ndim)), keepdim=True, dtype=wide)
            weights.append(w)
            magnitudes.append(norm)
            scales.append(1 / math.sqrt(fan_in))
    if weights:  # configs A to D have none
        torch._foreach_mul_(magnitudes, scales)
        torch._foreach_add_(magnitudes, EPS)
        torch._foreach_div_(weights, magnitudes)
