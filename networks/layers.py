"""Layers with weights, and the forced normalization of these weights (Appendix B.4, B.5, B.7)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.magnitude import EPS, euclidean_norm, normalize, resample


class Fourier(nn.Module):
    """Random Fourier features of a scalar (Eqs. 35 and 36).

        y_j = amplitude cos(f_j x + p_j),    f_j = 2π N(0, 1) bandwidth,    p_j = 2π U(0, 1)

    Frequencies and phases are buffers: drawn once, never trained.
    """

    amplitude = 1.0
    """Height of the cosines."""

    def __init__(self, num_channels: int, bandwidth: float = 1) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * bandwidth * torch.randn(num_channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, num_channels], at least float32 inside because the angles are large; dtype of `x`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        angles = torch.outer(x.to(dtype), self.freqs.to(dtype)) + self.phases.to(dtype)
        return (self.amplitude * angles.cos()).to(x.dtype)


class MPFourier(Fourier):
    """Fourier features of unit magnitude (Eq. 75): sqrt(2) cos(f_j x + p_j)."""

    amplitude = math.sqrt(2)


class Conv(nn.Module, ABC):
    """Convolution or linear layer.

        y = x * w' + b

    Subclasses say how weights start, and how the effective weights w' follow from them.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: () for a linear layer, (k, k) with odd k for a convolution with zero padding.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__()
        fan_in = in_channels * math.prod(kernel)
        self.weight = nn.Parameter(self.initial_values((out_channels, in_channels, *kernel), fan_in))
        self.register_parameter("bias", None)

    @abstractmethod
    def initial_values(self, shape: Sequence[int], fan_in: int) -> Tensor:
        """Values of a new parameter, of a layer whose output units have `fan_in` inputs each."""

    @abstractmethod
    def effective_weight(self) -> Tensor:
        """w' above; shaped like the parameter."""

    def kernel(self) -> Tensor:
        """w' as `convolve` takes it."""
        return self.effective_weight()

    @staticmethod
    def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        """The forward pass for a given kernel, without parameters."""
        return apply_weight(x, kernel, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out], or [N, in, H, W] -> [N, out, H, W]; computed in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self.convolve(x, self.kernel().to(x.dtype), bias)


class WeightNormConv(Conv):
    """Layer without bias whose weights have unit magnitude per output unit where they are used (Eqs. 47 and 66).

        y = x * w',    w' = normalize(w) factor gain / sqrt(fan_in)

    Only the direction of each output unit's weights matters. The normalization is part of the forward pass because the
    gradient must see it; `forward` never changes the parameter.

    Args:
        in_channels, out_channels, kernel: See `Conv`.
        factor: A constant that the input or the output would otherwise have to be multiplied by.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = (), factor: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, kernel)
        self.factor = factor

    def initial_values(self, shape: Sequence[int], fan_in: int) -> Tensor:
        """N(0, 1)."""
        return torch.randn(shape)

    def effective_weight(self, gain: Tensor | float = 1) -> Tensor:
        """w' above, in at least float32; shaped like the parameter."""
        w = self.weight
        w = w if w.dtype.itemsize >= 4 else w.float()
        root = math.sqrt(w[0].numel())
        if isinstance(gain, Tensor) or not self.factor * gain:
            return normalize(w) * (gain / root * self.factor)
        return normalize(w, magnitude=self.factor * gain / root)

    def kernel(self, gain: Tensor | float = 1) -> Tensor:
        """w' as `convolve` takes it."""
        return self.effective_weight(gain)

    def forward(self, x: Tensor, gain: Tensor | float = 1) -> Tensor:
        """[N, in] -> [N, out], or [N, in, H, W] -> [N, out, H, W]; computed in the dtype of `x`."""
        return self.convolve(x, self.kernel(gain).to(x.dtype))


class MPConv(WeightNormConv):
    """Magnitude-preserving layer: its weights are normalized on use and, by `force_weight_normalization_`, for good.

    The parameter itself then has unit magnitude per output unit, up to one update of the optimizer.
    """


class DoublingConv(MPConv):
    """3x3 convolution of an image whose every pixel is first doubled in height and width.

    On CPUs one of the image as it is, by 16 multiplications where there were 36: neighbours in the doubled image are
    mostly equal, so their weights are added beforehand. (On other devices this has not been timed.)

        conv(double(x), w) = transposed_conv(x, k; stride 2, padding 1)
        k[a, b] = sum of v[a - 1 : a + 1, b - 1 : b + 1],    v = w upside down and mirrored, zero outside
    """

    def __init__(self, in_channels: int, out_channels: int, factor: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, kernel=(3, 3), factor=factor)

    def kernel(self, gain: Tensor | float = 1) -> Tensor:
        """k above, [in, out, 4, 4], on a CPU; w, [out, in, 3, 3], elsewhere."""
        w = self.effective_weight(gain)
        if w.device.type != "cpu":
            return w
        w = w.transpose(0, 1).contiguous(memory_format=torch.channels_last)  # else each call would turn k around
        return F.avg_pool2d(w.flip(2, 3), kernel_size=2, stride=1, padding=1, divisor_override=1)

    @staticmethod
    def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        """[N, in, H, W] -> [N, out, 2 H, 2 W] for either kernel."""
        if kernel.shape[2] == 3:
            return apply_weight(resample(x, "up"), kernel, bias)
        return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


def apply_weight(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by a matrix [out, in], or convolve with a kernel [out, in, k, k] and zero padding k // 2."""
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
    weights = [_local(layer.weight) for layer in module.modules() if isinstance(layer, MPConv)]
    if not weights:  # configs A to D
        return
    magnitudes = [euclidean_norm(w, range(1, w.ndim)) for w in weights]
    torch._foreach_mul_(magnitudes, [math.sqrt(1 / math.prod(w.shape[1:])) for w in weights])
    torch._foreach_add_(magnitudes, EPS)
    torch._foreach_div_(weights, magnitudes)


def _local(w: Tensor) -> Tensor:
    """This process's rows of a weight that torch shards (DTensor), else the weight itself."""
    return w.to_local() if hasattr(w, "to_local") else w
