"""Config A: the baseline, EDM's network for ImageNet-64 on latents (Appendix B.1, Figure 16).

The architecture is that of ADM: biases everywhere, group norms, a scale and a shift from the embedding, dot-product
attention, and last layers of branches that start at zero. Parameters have the names of the published EDM networks.
Shapes: N images, C channels, H by W pixels, E embedding width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.attention import dot_product_attention
from edm2.networks.layers import Conv, Fourier
from edm2.networks.magnitude import ResampleMode
from edm2.networks.skeleton import BlockSkeleton, UNetSkeleton

# Layers


class UniformConv(Conv):
    """Layer whose weights are used as they are."""

    half_width: ClassVar[float] = 1.0
    """1 is EDM's choice; sqrt(3) would give outputs the magnitude of the inputs."""

    def initial_values(self, shape: Sequence[int], fan_in: int) -> Tensor:
        """Uniform in ±half_width / sqrt(fan_in)."""
        bound = self.half_width / math.sqrt(fan_in)
        return torch.empty(shape).uniform_(-bound, bound)

    def effective_weight(self) -> Tensor:
        """The parameter itself."""
        return self.weight


class BiasedConv(UniformConv):
    """The same with a bias, which starts like the weights."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__(in_channels, out_channels, kernel)
        self.bias = nn.Parameter(self.initial_values((out_channels,), in_channels * math.prod(kernel)))


class ZeroConv(BiasedConv):
    """Last layer of a branch: starts at zero, so that a new branch adds nothing to its sum."""

    def initial_values(self, shape: Sequence[int], fan_in: int) -> Tensor:
        """Zeros."""
        return torch.zeros(shape)


class ClassEmbedding(UniformConv):
    """A vector per class, without bias."""

    def initial_values(self, shape: Sequence[int], fan_in: int) -> Tensor:
        """N(0, 1)."""
        return torch.randn(shape)


class GroupNorm(nn.Module):
    """Zero mean and unit variance per group of channels, then a learned scale and bias per channel.

    Args:
        channels: Channels in and out.
        channels_per_group: Channels that are normalized together; None for `group_count`'s choice.

    Raises:
        ValueError: the channels do not split into groups.
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
    """Groups of a group norm: min(32, C / 4) as in EDM, or as many as `channels_per_group` asks for.

    Raises:
        ValueError: the channels do not split evenly.
    """
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

    Raises:
        ValueError: an odd number of channels.
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


class BlockA(BlockSkeleton):
    """Residual block with adaptive scale and shift, and attention.

    Args:
        in_channels: Channels of the input, a concatenated skip connection included.
        out_channels: Channels of the output.
        emb_channels: Width of the embedding.
        resample_mode, resample_filter, attention, channels_per_head, dropout, clip_act: See `BlockSkeleton`.
        channels_per_group: See `GroupNorm`.

    Raises:
        ValueError: channels that cannot be split into heads or groups.
    """

    conv: ClassVar[type[Conv]] = BiasedConv
    last_conv: ClassVar[type[Conv]] = ZeroConv
    """Last layer of a branch."""
    norm: ClassVar[type[nn.Module]] = GroupNorm
    attention_norm: ClassVar[type[nn.Module]] = GroupNorm
    """Before queries, keys and values."""
    attention: ClassVar[Callable[[Tensor, int], Tensor]] = staticmethod(dot_product_attention)
    modulations: ClassVar[int] = 2
    """Numbers per channel that the embedding gives: scale and shift."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        resample_mode: ResampleMode = "keep",
        resample_filter: Sequence[float] = (1, 1),
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        clip_act: float | None = None,
        channels_per_group: int | None = None,
    ) -> None:
        super().__init__(out_channels, resample_mode, resample_filter, attention, channels_per_head, dropout, clip_act)
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
        y = self.residual(x, emb)
        x = self.resample(x)
        x = x if self.skip is None else self.skip(x)
        x = x + y
        x = x + self.attend(x) if self.num_heads else x
        return self.clip(x)

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """The residual branch, resampled before its first convolution: [N, in_channels, H, W] and [N, E] -> as out."""
        y = self.conv0(self.resample(F.silu(self.norm0(x))))
        y = F.silu(self.modulate(self.norm1(y), emb))
        return self.conv1(self.drop(y))

    def modulate(self, y: Tensor, emb: Tensor) -> Tensor:
        """y (1 + scale) + shift, both from the embedding, in float32 like the embedding itself."""
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift.to(y.dtype), y, (1 + scale).to(y.dtype))

    def attend(self, x: Tensor) -> Tensor:
        """Attention over the pixels: [N, C, H, W] -> [N, C, H, W]."""
        return self.proj(self.attention(self.qkv(self.norm2(x)), self.num_heads))


class UNetA(UNetSkeleton):
    """Config A. u(sigma), which its loss does not use, gets Fourier features as in the later configurations."""

    conv = BiasedConv
    last_conv: ClassVar[type[Conv]] = ZeroConv
    label_conv: ClassVar[type[Conv]] = ClassEmbedding
    norm: ClassVar[type[nn.Module]] = GroupNorm
    noise_features: ClassVar[type[nn.Module]] = PositionalEmbedding
    """Features of the noise level in the embedding."""
    fourier = Fourier
    encoder_block = BlockA
    decoder_block = BlockA
    constant_channels = 0

    def block_options(self) -> dict[str, Any]:
        """Options that all blocks have in common."""
        return super().block_options() | {"channels_per_group": self.config.channels_per_group}

    def build_embedding(self, noise_channels: int, emb_channels: int) -> None:
        """Two linear layers for the noise level, one for the label."""
        self.map_noise = self.noise_features(noise_channels)
        self.map_layer0 = self.conv(noise_channels, emb_channels)
        self.map_layer1 = self.conv(emb_channels, emb_channels)
        self.map_label = self.label_conv(self.config.label_dim, emb_channels) if self.config.label_dim else None

    def build_output(self, channels: int) -> None:
        """A norm and a convolution."""
        self.out_norm = self.norm(channels, self.config.channels_per_group)
        self.out_conv = self.last_conv(channels, self.config.img_channels, kernel=(3, 3))

    def embed(self, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """Noise level [N] and one-hot labels [N, label_dim] -> embedding [N, E]."""
        emb = F.silu(self.map_layer0(self.map_noise(c_noise)))
        emb = self.map_layer1(emb)
        if self.map_label is not None:
            emb = emb + self.map_label(self.scale_label(class_labels))
        return F.silu(emb)

    def scale_label(self, one_hot: Tensor) -> Tensor:
        """One-hot labels as they are."""
        return one_hot

    def concat(self, x: Tensor, skip: Tensor) -> Tensor:
        """Plain concatenation."""
        return torch.cat([x, skip], dim=1)

    def leave(self, x: Tensor) -> Tensor:
        """Norm, SiLU and convolution."""
        return self.out_conv(F.silu(self.out_norm(x)))
