"""Config F: no group norms (Appendix B.6, Figure 21).

Changes to config E: all group norms are gone; the encoder's main path is pixel-normalized instead, once per block.
Resampling moves to the main path, before both branches, and the encoder's 1x1 convolution to its start. The output
loses its SiLU, the embedding its second linear layer.

This is the network of config G but for the fixed functions (Appendix B.7): SiLU, sums, concatenation and cosines are
plain here, and there are no gains.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.attention import cosine_attention
from edm2.networks.blocks import ResidualBlock
from edm2.networks.config import NetworkConfig
from edm2.networks.ladder.config_a import run_levels
from edm2.networks.layers import Fourier, MPConv
from edm2.networks.magnitude import normalize, resample
from edm2.networks.unet import append_ones, block_options, build_decoder, build_encoder


class BlockF(ResidualBlock):
    """Layers of both flavours of config F.

    Args:
        in_channels: Channels of the input, a concatenated skip connection included.
        residual_channels: Channels that the residual branch sees.
        out_channels: Channels of the output.
        emb_channels: Width of the embedding.
        options: See `ResidualBlock`.
    """

    def __init__(
        self, in_channels: int, residual_channels: int, out_channels: int, emb_channels: int, **options
    ) -> None:
        super().__init__(out_channels, **options)
        self.conv_res0 = MPConv(residual_channels, out_channels, (3, 3))
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        self.conv_skip = MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        if self.num_heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, (1, 1))
            self.attn_proj = MPConv(out_channels, out_channels, (1, 1))

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """Residual branch: [N, residual_channels, H, W] and [N, E] -> [N, out_channels, H, W]."""
        y = self.conv_res0(F.silu(x))
        modulation = (1 + self.emb_linear(emb))[:, :, None, None]  # in float32 like the embedding itself
        y = F.silu(y * modulation.to(y.dtype))
        return self.conv_res1(self.drop(y))

    def attend(self, x: Tensor) -> Tensor:
        """Sum of `x` and cosine attention over its pixels: [N, C, H, W] -> [N, C, H, W]."""
        return x + self.attn_proj(cosine_attention(self.attn_qkv(x), self.num_heads))


class EncoderBlockF(BlockF):
    """Encoder flavour: the main path is resampled, projected and pixel-normalized before both branches."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, **options) -> None:
        super().__init__(in_channels, out_channels, out_channels, emb_channels, **options)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        x = resample(x, self.resample_mode, self.resample_filter)
        x = x if self.conv_skip is None else self.conv_skip(x)
        x = normalize(x, dim=1)  # pixel norm (Eq. 30)
        x = x + self.residual(x, emb)
        x = self.attend(x) if self.num_heads else x
        return self.clip(x)


class DecoderBlockF(BlockF):
    """Decoder flavour: the residual branch sees the whole input, the main path is projected beside it."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, **options) -> None:
        super().__init__(in_channels, in_channels, out_channels, emb_channels, **options)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        x = resample(x, self.resample_mode, self.resample_filter)
        y = self.residual(x, emb)
        x = x if self.conv_skip is None else self.conv_skip(x)
        x = x + y
        x = self.attend(x) if self.num_heads else x
        return self.clip(x)


class UNetF(nn.Module):
    """F(x; c_noise, label) of config F.

    Args:
        config: Widths, depths, attention; see `NetworkConfig`.

    Raises:
        ValueError: channels that cannot be split into heads.
    """

    conv = MPConv
    fourier = Fourier
    memory_format = torch.channels_last

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        unit = math.sqrt(config.label_dim)  # a one-hot vector has magnitude 1 / sqrt(label_dim)
        self.emb_fourier = Fourier(config.noise_channels)
        self.emb_noise = MPConv(config.noise_channels, config.emb_channels)
        self.emb_label = MPConv(config.label_dim, config.emb_channels, scale=unit) if config.label_dim else None
        first = MPConv(config.img_channels + 1, config.widths[0], (3, 3))
        self.enc, skip_channels = build_encoder(config, first, EncoderBlockF, block_options(config))
        self.dec = build_decoder(config, skip_channels, DecoderBlockF, block_options(config))
        self.out_conv = MPConv(config.widths[0], config.img_channels, (3, 3))

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """Raw output F; arguments as of `edm2.networks.UNet.forward`."""
        emb = self.embed(c_noise, class_labels)
        x = append_ones(x).contiguous(memory_format=self.memory_format)
        x = run_levels(self.enc, self.dec, x, emb)
        return self.out_conv(x)

    def embed(self, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """Noise level [N] and labels [N, label_dim] -> embedding [N, E], computed in the dtype of `c_noise`."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            emb = emb + self.emb_label(class_labels)
        return F.silu(emb)
