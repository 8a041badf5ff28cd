"""Encoder and decoder blocks of config G (Figure 22). Shapes: N images, C channels, H by W pixels, E embedding."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.layers import MPConv
from edm2.networks.magnitude import ResampleMode, mp_silu, mp_sum, normalize, resample


class Block(nn.Module, ABC):
    """What both flavours share: a residual branch modulated by the embedding, and cosine attention.

    Args:
        in_channels: Channels of the input, a concatenated skip connection included.
        out_channels: Channels of the output.
        emb_channels: Width of the embedding.
        resample_mode: What happens to the resolution at the block's entry.
        resample_filter: Taps of the resampling filter.
        attention: Whether attention follows the residual sum.
        channels_per_head: Channels of an attention head; a block narrower than one head has no attention.
        dropout: Probability to drop an activation between the two convolutions, in training mode.
        res_balance: Share of the residual branch in its sum (Eq. 88).
        attn_balance: Share of the attention branch in its sum.
        clip_act: Bound on the activations that leave the block; None for none.

    Raises:
        ValueError: `out_channels` cannot be split evenly into heads.
    """

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
        super().__init__()
        self.resample_mode = resample_mode
        self.resample_filter = tuple(resample_filter)
        self.num_heads = out_channels // channels_per_head if attention else 0
        self.dropout = dropout
        self.res_balance = res_balance
        self.attn_balance = attn_balance
        self.clip_act = clip_act
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f"{out_channels} channels do not split evenly into {self.num_heads} attention heads")
        self.emb_gain = nn.Parameter(torch.zeros([]))
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

    @abstractmethod
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """The residual branch: [N, C, H, W] and [N, E] -> [N, out_channels, H, W]."""
        y = self.conv_res0(mp_silu(x))
        scale = 1 + self.emb_linear(emb, gain=self.emb_gain)  # in float32 like the embedding itself
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        y = F.dropout(y, self.dropout, self.training) if self.dropout else y
        return self.conv_res1(y)

    def attend(self, x: Tensor) -> Tensor:
        """Cosine attention over the pixels (Section 2.1, Eq. 27): queries, keys and values of unit magnitude per head.

        The logits q·k / sqrt(d) = sqrt(d) cos(q, k) cannot exceed sqrt(d), whatever the weights do.
        """
        n, c, h, w = x.shape
        qkv = self.attn_qkv(x).reshape(n, self.num_heads, c // self.num_heads, 3, h * w)  # q, k, v vary fastest
        q, k, v = normalize(qkv, dim=2).permute(3, 0, 1, 4, 2).unbind(0)  # each [N, heads, pixels, d]
        y = F.scaled_dot_product_attention(q, k, v)
        return self.attn_proj(y.transpose(2, 3).reshape(n, c, h, w))

    def finish(self, x: Tensor) -> Tensor:
        """Attention, if the block has it, then the bound on the activations."""
        if self.num_heads:
            x = mp_sum(x, self.attend(x), t=self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)


class EncoderBlock(Block):
    """Encoder flavour: the main path is resampled, projected and pixel-normalized before both branches."""

    @staticmethod
    def residual_channels(in_channels: int, out_channels: int) -> int:
        """Those of the projected input."""
        return out_channels

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        x = resample(x, self.resample_mode, self.resample_filter)
        x = x if self.conv_skip is None else self.conv_skip(x)
        x = normalize(x, dim=1)
        x = mp_sum(x, self.residual(x, emb), t=self.res_balance)
        return self.finish(x)


class DecoderBlock(Block):
    """Decoder flavour: the residual branch sees the whole input, the main path is projected beside it."""

    @staticmethod
    def residual_channels(in_channels: int, out_channels: int) -> int:
        """Those of the whole input."""
        return in_channels

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        x = resample(x, self.resample_mode, self.resample_filter)
        y = self.residual(x, emb)
        x = x if self.conv_skip is None else self.conv_skip(x)
        x = mp_sum(x, y, t=self.res_balance)
        return self.finish(x)
