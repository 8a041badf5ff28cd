"""Encoder and decoder blocks of config G (Figure 22). Shapes: N images, C channels, H by W pixels, E embedding.

In the paper, the constants of MP-SiLU (Eq. 81) and MP-sum (Eq. 88) multiply activations. Here they multiply the weights
of the neighbouring layer, which are far fewer: its `scale`. `reference.py` has the same network without this.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.attention import sort_by_kind, sorted_cosine_attention
from edm2.networks.conditions import CrossAttention, Prepared
from edm2.networks.layers import MPConv
from edm2.networks.magnitude import SILU_MAGNITUDE, ResampleMode, mp_sum_weights, normalize, resample

SILU_SCALE = 1 / SILU_MAGNITUDE
"""mp_silu(x) = SILU_SCALE silu(x) (Eq. 81)."""


class ResidualBlock(nn.Module):
    """Settings and small operations that the blocks of all configurations have in common.

    Args:
        out_channels: Channels of the output.
        resample_mode: Change of the resolution at the block's entry.
        resample_filter: Taps of the resampling filter.
        attention: Attention follows the residual sum.
        channels_per_head: Channels of an attention head; a block narrower than one head has no attention.
        dropout: Probability to drop an activation between the two convolutions, in training mode.
        clip_act: Bound on the activations that leave the block; None for none.

    Raises:
        ValueError: `out_channels` cannot be split evenly into heads.
    """

    def __init__(
        self,
        out_channels: int,
        *,
        resample_mode: ResampleMode = "keep",
        resample_filter: Sequence[float] = (1, 1),
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        clip_act: float | None = None,
    ) -> None:
        super().__init__()
        self.resample_mode = resample_mode
        self.resample_filter = tuple(resample_filter)
        self.num_heads = out_channels // channels_per_head if attention else 0
        self.dropout = dropout
        self.clip_act = clip_act
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f"{out_channels} channels do not split evenly into {self.num_heads} attention heads")

    def drop(self, x: Tensor) -> Tensor:
        """Dropout, if there is any."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def clip(self, x: Tensor) -> Tensor:
        """Bound the activations, if they have a bound. `x` is the block's own sum, so it may be overwritten."""
        if self.clip_act is None:
            return x
        return F.hardtanh(x, -self.clip_act, self.clip_act, inplace=not torch.is_grad_enabled())


class QueriesKeysValues(MPConv):
    """1x1 convolution to queries, keys and values that sorts its weights, so that nobody has to sort its output.

    Rows of the parameter are ordered (head, channel, q/k/v), as published; channels out (q/k/v, head, channel).

    Args:
        channels: Channels C in; 3 C out.
        num_heads: Number of heads.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__(channels, 3 * channels, (1, 1))
        self.heads = num_heads

    def effective_weight(self, gain: Tensor | float = 1) -> Tensor:
        """Return w', its rows in the order of the channels out."""
        return sort_by_kind(super().effective_weight(gain), self.heads, dim=0)


class Block(ResidualBlock):
    """Layers of both flavours: a residual branch that the embedding modulates, and cosine attention.

    Args:
        in_channels: Channels of the input, a concatenated skip connection included.
        residual_channels: Channels that the residual branch sees.
        out_channels: Channels of the output.
        emb_channels: Width of the embedding.
        res_balance: Balance t of the residual branch in its MP-sum (Eq. 88).
        attn_balance: Balance t of the attention branch in its MP-sum.
        token_sizes: Numbers per token of each condition that a block with attention attends to, by name.
        normalized_modulation: Divide the modulation by its root mean square over channels.
        clip_act, options: See `ResidualBlock`.

    Raises:
        ValueError: `out_channels` cannot be split evenly into heads.
    """

    def __init__(
        self,
        in_channels: int,
        residual_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        token_sizes: Mapping[str, int] | None = None,
        normalized_modulation: bool = False,
        clip_act: float | None = 256.0,
        **options,
    ) -> None:
        super().__init__(out_channels, clip_act=clip_act, **options)
        self.x_weight, y_weight = mp_sum_weights(res_balance)  # Eq. 88: x_weight x + y_weight y
        self.normalized_modulation = normalized_modulation
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(residual_channels, out_channels, (3, 3), scale=SILU_SCALE)
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3), scale=SILU_SCALE * y_weight)
        self.conv_skip = MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        if self.num_heads:
            self.attn_x_weight, attn_y_weight = mp_sum_weights(attn_balance)
            self.attn_qkv = QueriesKeysValues(out_channels, self.num_heads)
            self.attn_proj = MPConv(out_channels, out_channels, (1, 1), scale=attn_y_weight)
            cross = {n: CrossAttention(out_channels, size, self.num_heads) for n, size in (token_sizes or {}).items()}
            self.attn_cross = nn.ModuleDict(cross)

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """Residual branch, times its weight in the MP-sum: [N, residual_channels, H, W] -> [N, out_channels, H, W]."""
        y = self.conv_res0(F.silu(x))  # MP-SiLU: its 1/0.596 is conv_res0.scale
        modulation = 1 + self.emb_linear(emb, gain=self.emb_gain)  # a factor per channel, in float32 like the embedding
        if self.normalized_modulation:
            modulation = modulation / modulation.square().mean(dim=1, keepdim=True).add(1e-8).sqrt()
        y = modulated_silu(y, modulation[:, :, None, None].to(y.dtype))
        return self.conv_res1(self.drop(y))  # MP-SiLU's 1/0.596 and the MP-sum's y_weight are conv_res1.scale

    def attend(self, x: Tensor, contexts: Mapping[str, Prepared] | None = None) -> Tensor:
        """MP-sum of `x` and cosine attention over its pixels, then over the tokens of conditions by name.

        [N, C, H, W] -> [N, C, H, W].
        """
        y = self.attn_proj(sorted_cosine_attention(self.attn_qkv(x), self.num_heads))  # scale: the MP-sum weight of y
        x = y.add_(x, alpha=self.attn_x_weight)
        for name, context in (contexts or {}).items():
            x = self.attn_cross[name](x, context)
        return x


def modulated_silu(y: Tensor, modulation: Tensor) -> Tensor:
    """silu(y modulation), in the memory of `y` where no gradient is asked for; nobody else may need it then."""
    if torch.is_grad_enabled():
        return F.silu(y * modulation)
    return F.silu(y.mul_(modulation), inplace=True)


class EncoderBlock(Block):
    """Encoder flavour: the main path is resampled, projected and pixel-normalized before both branches.

    Arguments as of `Block`; the residual branch sees `out_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, **options) -> None:
        super().__init__(in_channels, out_channels, out_channels, emb_channels, **options)

    def forward(self, x: Tensor, emb: Tensor, contexts: Mapping[str, Prepared] | None = None) -> Tensor:
        """[N, in_channels, H, W], [N, E] and tokens by name -> [N, out_channels, H', W']."""
        x = resample(x, self.resample_mode, self.resample_filter)
        x = x if self.conv_skip is None else self.conv_skip(x)
        x = normalize(x, dim=1)  # pixel norm (Eq. 30)
        x = self.residual(x, emb).add_(x, alpha=self.x_weight)  # MP-sum (Eq. 88)
        x = self.attend(x, contexts) if self.num_heads else x
        return self.clip(x)


class DecoderBlock(Block):
    """Decoder flavour: the residual branch sees the whole input, the main path is projected beside it.

    Arguments as of `Block`; the residual branch sees `in_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, **options) -> None:
        super().__init__(in_channels, in_channels, out_channels, emb_channels, **options)

    def forward(self, x: Tensor, emb: Tensor, contexts: Mapping[str, Prepared] | None = None) -> Tensor:
        """[N, in_channels, H, W], [N, E] and tokens by name -> [N, out_channels, H', W']."""
        x = resample(x, self.resample_mode, self.resample_filter)
        y = self.residual(x, emb)
        x = x if self.conv_skip is None else self.conv_skip(x)
        x = y.add_(x, alpha=self.x_weight)  # MP-sum (Eq. 88)
        x = self.attend(x, contexts) if self.num_heads else x
        return self.clip(x)


def blocks(net: nn.Module) -> list[ResidualBlock]:
    """Blocks of encoder and decoder of a `Precond` network, in order."""
    children = [*net.get_submodule("unet.enc").children(), *net.get_submodule("unet.dec").children()]
    return [module for module in children if isinstance(module, ResidualBlock)]  # the input convolution is no block
