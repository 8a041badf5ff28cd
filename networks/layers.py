"""Magnitude-preserving layers with weights, and the forced normalization of these weights (Appendix B.4, B.5, B.7)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.magnitude import normalize


class MPFourier(nn.Module):
    """Random Fourier features of a scalar, with unit magnitude (Eq. 75).

        y_j = sqrt(2) cos(f_j x + p_j),    f_j = 2π N(0, 1) bandwidth,    p_j = 2π U(0, 1)

    Frequencies and phases are buffers: drawn once, never trained.
    """

    def __init__(self, num_channels: int, bandwidth: float = 1) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * bandwidth * torch.randn(num_channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, num_channels], at least float32 inside because the angles are large; dtype of `x`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        angles = torch.outer(x.to(dtype), self.freqs.to(dtype)) + self.phases.to(dtype)
        return (math.sqrt(2) * angles.cos()).to(x.dtype)


class MPConv(nn.Module):
    """Convolution or linear layer without bias whose weights have unit magnitude per output unit (Eqs. 47 and 66).

        y = x * w',    w' = normalize(w) gain / sqrt(fan_in)

    Only the direction of each output unit's weights matters. The normalization is part of the forward pass because the
    gradient must see it; `forward` never changes the parameter. `force_weight_normalization_` does, once per step.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: () for a linear layer, (k, k) with odd k for a convolution with zero padding.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def effective_weight(self, gain: Tensor | float = 1) -> Tensor:
        """w' above, in at least float32; shaped like the parameter."""
        w = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        return normalize(w) * (gain / math.sqrt(w[0].numel()))

    def forward(self, x: Tensor, gain: Tensor | float = 1) -> Tensor:
        """[N, in] -> [N, out], or [N, in, H, W] -> [N, out, H, W]; computed in the dtype of `x`."""
        return apply_weight(x, self.effective_weight(gain).to(x.dtype))


def apply_weight(x: Tensor, w: Tensor) -> Tensor:
    """Multiply by a matrix [out, in], or convolve with a kernel [out, in, k, k] and zero padding k // 2."""
    if w.ndim == 2:
        return F.linear(x, w)
    return F.conv2d(x, w, padding=(w.shape[-2] // 2, w.shape[-1] // 2))


@torch.no_grad()
def force_weight_normalization_(module: nn.Module) -> None:
    """Overwrite the weight of every `MPConv` inside `module` by its normalized self (Algorithm 1).

    Called once per training step, before the forward pass, it keeps the effective learning rate of every layer under
    the control of the schedule: weights cannot grow, and their updates stay as large as Adam made them. It happens
    outside autograd and in place, so the optimizer's reference to the parameter stays valid.
    """
    for layer in module.modules():
        if isinstance(layer, MPConv):
            layer.weight.copy_(normalize(layer.weight))
