"""Config A: the baseline, EDM's network for ImageNet-64 on latents (Appendix B.1, Figure 16).

The architecture is that of ADM: biases everywhere, group norms, a scale and a shift from the embedding, dot-product
attention, and last layers of branches that start at zero. Parameters have the names of the published EDM networks.
Shapes: N images, C channels, H by W pixels, E embedding width.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.attention import dot_product_attention
from edm2.networks.blocks import ResidualBlock
from edm2.networks.config import NetworkConfig
from edm2.networks.layers import Conv, Fourier
from edm2.networks.magnitude import resample
from edm2.networks.unet import append_ones, block_options, build_decoder, build_encoder

# Layers


class ConvClass(Protocol):
    """Class of a layer, made from channels in, channels out and a kernel."""

    def __call__(self, *args: Any, **kwargs: Any) -> Conv:
        """Make a layer."""
        ...


class PlainConv(Conv):
    """Layer whose weights are used as they are."""

    def effective_weight(self) -> Tensor:
        """Return the parameter itself."""
        return self.weight


class UniformConv(PlainConv):
    """Layer whose weights start uniform in ±half_width / sqrt(fan_in).

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: () for a linear layer, (k, k) with odd k for a convolution with zero padding.
    """

    half_width: ClassVar[float] = 1.0
    """1 is EDM's choice; sqrt(3) would give outputs the magnitude of the inputs."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        bound = self.half_width / math.sqrt(in_channels * math.prod(kernel))
        super().__init__(torch.empty(out_channels, in_channels, *kernel).uniform_(-bound, bound))


class BiasedConv(UniformConv):
    """`UniformConv` with a bias, which starts like the weights."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__(in_channels, out_channels, kernel)
        bound = self.half_width / math.sqrt(in_channels * math.prod(kernel))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))


class ZeroConv(PlainConv):
    """Last layer of a branch: weights and bias start at zero, so that a new branch adds nothing to its sum."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__(torch.zeros(out_channels, in_channels, *kernel), torch.zeros(out_channels))


class ClassEmbedding(PlainConv):
    """A vector per class, which starts as N(0, 1), without bias."""

    def __init__(self, label_dim: int, emb_channels: int) -> None:
        super().__init__(torch.randn(emb_channels, label_dim))


class GroupNorm(nn.Module):
    """Zero mean and unit variance per group of channels, then a learned scale and bias per channel.

    Args:
        channels: Channels in and out.
        channels_per_group: Channels that are normalized together; None for `group_count`'s choice.
    """

    eps = 1e-5

    def __init__(self, channels: int, channels_per_group: int | None = None) -> None:
        super().__init__()
        self.num_groups = group_count(channels, channels_per_group)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]; half precision is summed in float32 inside."""
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def group_count(channels: int, channels_per_group: int | None) -> int:
    """Groups of a group norm: min(32, C / 4) as in EDM, or as many as `channels_per_group` asks for."""
    groups = min(32, channels // 4) if channels_per_group is None else channels // channels_per_group
    if groups < 1 or channels % groups or channels_per_group not in (None, channels // groups):
        raise ValueError(
            f"{channels} channels do not split evenly into {groups} groups of a group norm; choose model_channels as "
            "a multiple of 32 (of 4 for widths below 128), or another channels_per_group"
        )
    return groups


class PositionalEmbedding(nn.Module):
    """Sines and cosines of a scalar, with frequencies from 1 down to almost 1 / 10000 in even steps of the logarithm.

    y = [cos(f_j x) | sin(f_j x)],    f_j = 10000^(-j / J),    j = 0 .. J - 1,    J = num_channels / 2
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        if num_channels % 2:
            raise ValueError(f"{num_channels} noise channels cannot be half cosines, half sines; choose an even number")
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, num_channels], at least float32 inside; dtype of `x`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        half = self.num_channels // 2
        freqs = 10_000 ** (-torch.arange(half, dtype=dtype, device=x.device) / half)
        angles = torch.outer(x.to(dtype), freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)


# Block and U-Net


class BlockA(ResidualBlock):
    """Residual block with adaptive scale and shift, and attention.

    Args:
        in_channels: Channels of the input, a concatenated skip connection included.
        out_channels: Channels of the output.
        emb_channels: Width of the embedding.
        channels_per_group: See `GroupNorm`.
        options: See `ResidualBlock`.

    Raises:
        ValueError: channels that cannot be split into heads or groups.
    """

    conv: ClassVar[ConvClass] = BiasedConv
    last_conv: ClassVar[ConvClass] = ZeroConv
    """Last layer of a branch."""
    norm: ClassVar[type[nn.Module]] = GroupNorm
    attention_norm: ClassVar[type[nn.Module]] = GroupNorm
    """Norm before queries, keys and values."""
    attention: "ClassVar[staticmethod[[Tensor, int], Tensor]]" = staticmethod(dot_product_attention)
    modulations: ClassVar[int] = 2
    """Numbers per channel that the embedding gives: scale and shift."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        channels_per_group: int | None = None,
        **options,
    ) -> None:
        super().__init__(out_channels, **options)
        self.norm0 = self.norm(in_channels, channels_per_group)
        self.conv0 = self.conv(in_channels, out_channels, kernel=(3, 3))
        self.affine = self.conv(emb_channels, self.modulations * out_channels)
        self.norm1 = self.norm(out_channels, channels_per_group)
        self.conv1 = self.last_conv(out_channels, out_channels, kernel=(3, 3))
        self.skip = self.conv(in_channels, out_channels, kernel=(1, 1)) if in_channels != out_channels else None
        if self.num_heads:
            self.norm2 = self.attention_norm(out_channels, channels_per_group)
            self.qkv = self.conv(out_channels, 3 * out_channels, kernel=(1, 1))
            self.proj = self.last_conv(out_channels, out_channels, kernel=(1, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        y = self.conv0(
            resample(F.silu(self.norm0(x)), self.resample_mode, self.resample_filter)
        )  # resampled before the first convolution
        y = F.silu(self.modulate(self.norm1(y), emb))
        y = self.conv1(self.drop(y))
        x = resample(x, self.resample_mode, self.resample_filter)
        x = x if self.skip is None else self.skip(x)
        x = x + y
        if self.num_heads:
            x = x + self.proj(self.attention(self.qkv(self.norm2(x)), self.num_heads))
        return self.clip(x)

    def modulate(self, y: Tensor, emb: Tensor) -> Tensor:
        """y (1 + scale) + shift, both from the embedding, in float32 like the embedding itself."""
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift.to(y.dtype), y, (1 + scale).to(y.dtype))


class UNetA(nn.Module):
    """F(x; c_noise, label) of config A.

    u(sigma), which its loss does not use, gets Fourier features as in the later configurations.

    Args:
        config: Widths, depths, attention; see `NetworkConfig`.

    Raises:
        ValueError: channels that cannot be split into heads or groups.
    """

    conv: ClassVar[ConvClass] = BiasedConv
    last_conv: ClassVar[ConvClass] = ZeroConv
    label_conv: ClassVar[ConvClass] = ClassEmbedding
    norm: ClassVar[type[nn.Module]] = GroupNorm
    noise_features: ClassVar[type[nn.Module]] = PositionalEmbedding
    """Features of the noise level in the embedding."""
    fourier: ClassVar[type[Fourier]] = Fourier
    """Features of the noise level in u(sigma)."""
    block: ClassVar[type[BlockA]] = BlockA
    constant_channels: ClassVar[int] = 0
    """Channels of ones appended to the image, in place of biases."""
    memory_format = torch.contiguous_format

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.map_noise = self.noise_features(config.noise_channels)
        self.map_layer0 = self.conv(config.noise_channels, config.emb_channels)
        self.map_layer1 = self.conv(config.emb_channels, config.emb_channels)
        self.map_label = self.label_conv(config.label_dim, config.emb_channels) if config.label_dim else None
        options = block_options(config) | {"channels_per_group": config.channels_per_group}
        first = self.conv(config.img_channels + self.constant_channels, config.widths[0], kernel=(3, 3))
        self.enc, skip_channels = build_encoder(config, first, self.block, options)
        self.dec = build_decoder(config, skip_channels, self.block, options)
        self.out_norm = self.norm(config.widths[0], config.channels_per_group)
        self.out_conv = self.last_conv(config.widths[0], config.img_channels, kernel=(3, 3))

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """Raw output F; arguments as of `edm2.networks.UNet.forward`."""
        emb = self.embed(c_noise, class_labels)
        x = append_ones(x) if self.constant_channels else x
        x = run_levels(self.enc, self.dec, x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))

    def embed(self, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """Noise level [N] and labels [N, label_dim] -> embedding [N, E], computed in the dtype of `c_noise`."""
        emb = F.silu(self.map_layer0(self.map_noise(c_noise)))
        emb = self.map_layer1(emb)
        if self.map_label is not None:
            assert class_labels is not None  # `Precond` hands some to every network with classes
            emb = emb + self.map_label(self.scale_label(class_labels))
        return F.silu(emb)

    def scale_label(self, one_hot: Tensor) -> Tensor:
        """Return one-hot labels as they are."""
        return one_hot


def run_levels(enc: nn.ModuleDict, dec: nn.ModuleDict, x: Tensor, emb: Tensor) -> Tensor:
    """Run the encoder, then the decoder with the encoder's outputs as skip connections, plainly concatenated.

    Args:
        enc, dec: Layers by name.
        x: Image with its constant channels, [N, C, H, W].
        emb: Embedding [N, E].

    Returns:
        Output of the last block, [N, C', H, W].
    """
    skips = []
    for name, layer in enc.items():
        x = layer(x) if name.endswith("_conv") else layer(x, emb)
        skips.append(x)
    for name, block in dec.items():
        x = torch.cat([x, skips.pop()], dim=1) if "_block" in name else x
        x = block(x, emb)
    return x
