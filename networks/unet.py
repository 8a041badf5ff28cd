"""The U-Net of config G (Figure 22). Shapes: N images, C channels, H by W pixels, E embedding width."""

from typing import Any, ClassVar

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
    fixed: ClassVar[type[MagnitudePreserving]] = MagnitudePreserving
    """Functions without weights, here and in the blocks."""

    def block_options(self) -> dict[str, Any]:
        """Options that all blocks have in common."""
        balances = {"res_balance": self.config.res_balance, "attn_balance": self.config.attn_balance}
        return super().block_options() | balances

    def build_embedding(self, noise_channels: int, emb_channels: int) -> None:
        """One linear layer for the noise level, one for the label."""
        self.emb_fourier = self.fourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, emb_channels)
        self.emb_label = MPConv(self.config.label_dim, emb_channels) if self.config.label_dim else None

    def build_output(self, channels: int) -> None:
        """A convolution, and its gain."""
        self.out_gain = self.fixed.gain()
        self.out_conv = MPConv(channels, self.config.img_channels, kernel=(3, 3))

    def embed(self, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """Noise level [N] and one-hot labels [N, label_dim] -> embedding [N, E]."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            one_hot = class_labels * self.config.label_dim**0.5  # unit magnitude for a one-hot vector
            emb = self.fixed.sum(emb, self.emb_label(one_hot), t=self.config.label_balance)
        return self.fixed.silu(emb)

    def concat(self, x: Tensor, skip: Tensor) -> Tensor:
        """MP-cat (Eq. 103)."""
        return self.fixed.cat(x, skip, t=self.config.concat_balance)

    def leave(self, x: Tensor) -> Tensor:
        """The output convolution, silent at first."""
        return self.out_conv(x, gain=self.out_gain)
