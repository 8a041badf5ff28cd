"""The U-Net of config G (Figure 22). Shapes: N images, C channels, H by W pixels, E embedding width."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from edm2.networks.blocks import DecoderBlock, EncoderBlock, MagnitudePreserving
from edm2.networks.layers import MPConv, MPFourier
from edm2.networks.skeleton import UNetSkeleton


class UNet(UNetSkeleton):
    """Config G: every layer, sum and concatenation preserves magnitude; a channel of ones takes the place of biases.

    Its parameters have the names of the published EDM2 checkpoints. For arguments and shapes see `UNetSkeleton`.
    """

    conv = MPConv
    fourier = MPFourier
    encoder_block = EncoderBlock
    decoder_block = DecoderBlock
    constant_channels = 1
    memory_format = torch.channels_last  # faster convolutions and sums over channels; group norms would lose
    fixed: ClassVar[type[MagnitudePreserving]] = MagnitudePreserving
    """Functions without weights, here and in the blocks."""

    def block_options(self) -> dict[str, Any]:
        """Options that all blocks have in common."""
        balances = {"res_balance": self.config.res_balance, "attn_balance": self.config.attn_balance}
        return super().block_options() | balances

    def build_embedding(self, noise_channels: int, emb_channels: int) -> None:
        """One linear layer for the noise level, one for the label; `factor` makes their sum an MP-sum."""
        label_dim = self.config.label_dim
        noise, label = self.fixed.sum_weights(self.config.label_balance) if label_dim else (1.0, 0.0)
        unit = label_dim**0.5  # gives a one-hot vector unit magnitude
        self.emb_fourier = self.fourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, emb_channels, factor=noise)
        self.emb_label = MPConv(label_dim, emb_channels, factor=label * unit) if label_dim else None

    def build_output(self, channels: int) -> None:
        """A convolution, and its gain."""
        self.out_gain = self.fixed.gain()
        self.out_conv = MPConv(channels, self.config.img_channels, kernel=(3, 3))

    def embed(self, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """Noise level [N] and one-hot labels [N, label_dim] -> embedding [N, E]."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            emb = emb + self.emb_label(class_labels)
        return F.silu(emb) * self.fixed.silu_gain

    def concat(self, x: Tensor, skip: Tensor) -> Tensor:
        """MP-cat (Eq. 103)."""
        return self.fixed.cat(x, skip, t=self.config.concat_balance)

    def leave(self, x: Tensor) -> Tensor:
        """The output convolution, silent at first."""
        return self.out_conv(x, gain=self.out_gain)
