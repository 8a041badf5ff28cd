"""Encoder and decoder blocks of config G (Figure 22). Shapes: N images, C channels, H by W pixels, E embedding."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from edm2.networks.attention import cosine_attention
from edm2.networks.layers import MPConv
from edm2.networks.magnitude import ResampleMode, mp_cat, mp_silu, mp_sum, normalize
from edm2.networks.skeleton import BlockSkeleton


class MagnitudePreserving:
    """The fixed functions between the layers of config G (Section 2.5); `ladder/config_f.py` has their plain form."""

    silu = staticmethod(mp_silu)
    sum = staticmethod(mp_sum)
    cat = staticmethod(mp_cat)

    @staticmethod
    def gain() -> nn.Parameter | int:
        """A factor on the output of a layer; it starts at zero (B.7), where a network without it starts at one."""
        return nn.Parameter(torch.zeros([]))


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
        self.res_balance = res_balance
        self.attn_balance = attn_balance
        self.emb_gain = self.fixed.gain()
        self.conv_res0 = MPConv(self.residual_channels(in_channels, out_channels), out_channels, kernel=(3, 3))
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, kernel=(3, 3))
        self.conv_skip = MPConv(in_channels, out_channels, kernel=(1, 1)) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, 3 * out_channels, kernel=(1, 1)) if self.num_heads else None
        self.attn_proj = MPConv(out_channels, out_channels, kernel=(1, 1)) if self.num_heads else None

    @staticmethod
    @abstractmethod
    def residual_channels(in_channels: int, out_channels: int) -> int:
        """Channels that enter the residual branch."""

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """The residual branch: [N, C, H, W] and [N, E] -> [N, out_channels, H, W]."""
        y = self.conv_res0(self.fixed.silu(x))
        scale = 1 + self.emb_linear(emb, gain=self.emb_gain)  # in float32 like the embedding itself
        y = self.fixed.silu(y * scale[:, :, None, None].to(y.dtype))
        return self.conv_res1(self.drop(y))

    def attend(self, x: Tensor) -> Tensor:
        """Cosine attention over the pixels: [N, C, H, W] -> [N, C, H, W]."""
        return self.attn_proj(cosine_attention(self.attn_qkv(x), self.num_heads))

    def finish(self, x: Tensor) -> Tensor:
        """Attention, if the block has it, then the bound on the activations."""
        if self.num_heads:
            x = self.fixed.sum(x, self.attend(x), t=self.attn_balance)
        return self.clip(x)


class EncoderBlock(Block):
    """Encoder flavour: the main path is resampled, projected and pixel-normalized before both branches."""

    @staticmethod
    def residual_channels(in_channels: int, out_channels: int) -> int:
        """Those of the projected input."""
        return out_channels

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        x = self.resample(x)
        x = x if self.conv_skip is None else self.conv_skip(x)
        x = normalize(x, dim=1)
        x = self.fixed.sum(x, self.residual(x, emb), t=self.res_balance)
        return self.finish(x)


class DecoderBlock(Block):
    """Decoder flavour: the residual branch sees the whole input, the main path is projected beside it."""

    @staticmethod
    def residual_channels(in_channels: int, out_channels: int) -> int:
        """Those of the whole input."""
        return in_channels

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        x = self.resample(x)
        y = self.residual(x, emb)
        x = x if self.conv_skip is None else self.conv_skip(x)
        x = self.fixed.sum(x, y, t=self.res_balance)
        return self.finish(x)
