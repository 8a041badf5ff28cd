"""Encoder and decoder blocks of config G (Figure 22). Shapes: N images, C channels, H by W pixels, E embedding."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.attention import sorted_by_kind, sorted_cosine_attention
from edm2.networks.layers import DoublingConv, MPConv
from edm2.networks.magnitude import (
    SILU_MAGNITUDE,
    ResampleMode,
    modulated_silu,
    mp_cat,
    mp_sum_weights,
    normalize,
)
from edm2.networks.skeleton import BlockSkeleton


class MagnitudePreserving:
    """The constants between the layers of config G (Section 2.5); `ladder/config_f.py` has their plain form.

    A constant factor on what a layer gets or gives moves into its weights: activations, which are many more, are then
    read and written once less. So MP-SiLU is SiLU, with `silu_gain` in the layer that follows, and MP-sum an addition.
    """

    silu_gain: ClassVar[float] = 1 / SILU_MAGNITUDE
    """mp_silu(x) = silu_gain silu(x) (Eq. 81)."""
    sum_weights = staticmethod(mp_sum_weights)
    """mp_sum(a, b, t) = w_a a + w_b b (Eq. 88)."""
    cat = staticmethod(mp_cat)

    @staticmethod
    def gain() -> nn.Parameter | int:
        """A factor on the output of a layer; it starts at zero (B.7), where a network without it starts at one."""
        return nn.Parameter(torch.zeros([]))


class QueriesKeysValues(MPConv):
    """1x1 convolution to queries, keys and values, which sorts its weights where others would sort its output.

    Rows of the parameter are ordered (head, channel, q/k/v), as published; channels out (q/k/v, head, channel).

    Args:
        channels: C in; 3 C out.
        heads: Number of heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, 3 * channels, kernel=(1, 1))
        self.heads = heads

    def effective_weight(self, gain: Tensor | float = 1) -> Tensor:
        """See `WeightNormConv`; rows in the order of the channels out."""
        return sorted_by_kind(super().effective_weight(gain), self.heads, dim=0)


class Block(BlockSkeleton):
    """What both flavours share: a residual branch modulated by the embedding, and cosine attention.

    Args:
        in_channels: Channels of the input, a concatenated skip connection included.
        out_channels: Channels of the output.
        emb_channels: Width of the embedding.
        resample_mode, resample_filter, attention, channels_per_head, dropout, clip_act: See `BlockSkeleton`.
        res_balance: Share of the residual branch in its sum (Eq. 88).
        attn_balance: Share of the attention branch in its sum.

    Raises:
        ValueError: `out_channels` cannot be split evenly into heads.
    """

    fixed: ClassVar[type[MagnitudePreserving]] = MagnitudePreserving
    """Functions without weights."""

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
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
    ) -> None:
        super().__init__(out_channels, resample_mode, resample_filter, attention, channels_per_head, dropout, clip_act)
        self.emb_gain = self.fixed.gain()
        self.main, share = self.fixed.sum_weights(res_balance)
        silu = self.fixed.silu_gain
        self.conv_res0 = self.first_convolution(in_channels, out_channels, factor=silu)
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, kernel=(3, 3), factor=silu * share)
        self.conv_skip = MPConv(in_channels, out_channels, kernel=(1, 1)) if in_channels != out_channels else None
        self.attn_main, share = self.fixed.sum_weights(attn_balance)
        self.attn_qkv = QueriesKeysValues(out_channels, self.num_heads) if self.num_heads else None
        self.attn_proj = MPConv(out_channels, out_channels, (1, 1), factor=share) if self.num_heads else None

    @abstractmethod
    def first_convolution(self, in_channels: int, out_channels: int, factor: float) -> MPConv:
        """3x3, of what enters the residual branch."""

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """The residual branch, in its share of the sum: [N, C, H, W] and [N, E] -> [N, out_channels, H', W']."""
        y = self.conv_res0(F.silu(x))
        scale = 1 + self.emb_linear(emb, gain=self.emb_gain)  # in float32 like the embedding itself
        y = modulated_silu(y, scale[:, :, None, None].to(y.dtype))
        return self.conv_res1(self.drop(y))

    def attend(self, x: Tensor) -> Tensor:
        """Cosine attention over the pixels, in its share of the sum: [N, C, H, W] -> [N, C, H, W]."""
        return self.attn_proj(sorted_cosine_attention(self.attn_qkv(x), self.num_heads))

    def finish(self, x: Tensor) -> Tensor:
        """Attention, if the block has it, then the bound on the activations."""
        if self.num_heads:
            x = self.attend(x).add_(x, alpha=self.attn_main)
        return self.clip(x)


class EncoderBlock(Block):
    """Encoder flavour: the main path is resampled, projected and pixel-normalized before both branches."""

    def first_convolution(self, in_channels: int, out_channels: int, factor: float) -> MPConv:
        """Of the projected input."""
        return MPConv(out_channels, out_channels, kernel=(3, 3), factor=factor)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        x = self.resample(x)
        x = x if self.conv_skip is None else self.conv_skip(x)
        x = normalize(x, dim=1)
        return self.finish(self.residual(x, emb).add_(x, alpha=self.main))


class DecoderBlock(Block):
    """Decoder flavour: the residual branch sees the whole input, the main path is projected beside it."""

    @property
    def doubles(self) -> bool:
        """Whether each pixel becomes four like it. Then so does SiLU of it, which may come first."""
        return self.resample_mode == "up" and self.resample_filter == (1, 1)

    def first_convolution(self, in_channels: int, out_channels: int, factor: float) -> MPConv:
        """Of the whole input."""
        if self.doubles:
            return DoublingConv(in_channels, out_channels, factor=factor)
        return MPConv(in_channels, out_channels, kernel=(3, 3), factor=factor)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        resampled = self.resample(x)
        y = self.residual(x if self.doubles else resampled, emb)
        x = resampled if self.conv_skip is None else self.conv_skip(resampled)
        return self.finish(y.add_(x, alpha=self.main))
