"""Config F: no group norms (Appendix B.6, Figure 21).

What it changes in config E: all group norms are gone; the encoder's main path is pixel-normalized instead, once per
block. Resampling moves to the main path, before both branches, and the encoder's 1x1 convolution to its start. The
output loses its SiLU, the embedding its second linear layer.

All this is the network of config G, which differs only in its fixed functions (Appendix B.7, Figure 22). They are plain
here: SiLU, sums, concatenation and cosines as they come, and no gains.
"""

import torch
from torch import Tensor

from edm2.networks.blocks import DecoderBlock, EncoderBlock, MagnitudePreserving
from edm2.networks.layers import Fourier
from edm2.networks.unet import UNet


class Plain(MagnitudePreserving):
    """The functions whose output has any magnitude; shares t are not heeded."""

    silu_gain = 1.0

    @staticmethod
    def sum_weights(t: float) -> tuple[float, float]:
        """a + b."""
        return 1.0, 1.0

    @staticmethod
    def cat(a: Tensor, b: Tensor, t: float) -> Tensor:
        """[N, C, H, W] and [N, C', H, W] -> [N, C + C', H, W]."""
        return torch.cat([a, b], dim=1)

    @staticmethod
    def gain() -> int:
        """None to learn."""
        return 1


class EncoderBlockF(EncoderBlock):
    """Config G's with plain functions."""

    fixed = Plain


class DecoderBlockF(DecoderBlock):
    """Config G's with plain functions."""

    fixed = Plain


class UNetF(UNet):
    """Config F."""

    fixed = Plain
    fourier = Fourier
    encoder_block = EncoderBlockF
    decoder_block = DecoderBlockF
