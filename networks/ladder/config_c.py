"""Config C: architectural streamlining (Appendix B.3, Figure 18).

No biases, no shift in the modulation, but a constant channel beside the image. Cosine attention. Group norms that only
scale. Fourier features instead of the positional embedding, one-hot labels of unit magnitude. Nothing starts at zero.
"""

from typing import ClassVar

from torch import Tensor, nn

from edm2.networks.attention import cosine_attention
from edm2.networks.ladder.config_a import BlockA, ConvClass, UniformConv, group_count
from edm2.networks.ladder.config_b import UNetB
from edm2.networks.layers import Fourier
from edm2.networks.magnitude import normalize


class ScalingGroupNorm(nn.Module):
    """Unit magnitude per group of channels (Eq. 29): no mean is taken away, nothing is learned.

        y = x / (eps + rms(x)),    rms over the channels of a group and all pixels

    Args:
        channels: Channels in and out.
        channels_per_group: Channels that are normalized together; None for `group_count`'s choice.
    """

    def __init__(self, channels: int, channels_per_group: int | None = None) -> None:
        super().__init__()
        self.num_groups = group_count(channels, channels_per_group)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]; half precision is summed in float32 inside."""
        return normalize(x.unflatten(1, (self.num_groups, -1)), dim=(2, 3, 4)).flatten(1, 2)


class BlockC(BlockA):
    """Config A's block without biases, shift and the norm before attention."""

    conv: ClassVar[ConvClass] = UniformConv
    last_conv: ClassVar[ConvClass] = UniformConv
    norm = ScalingGroupNorm
    attention_norm = nn.Identity
    attention = staticmethod(cosine_attention)
    modulations = 1

    def modulate(self, y: Tensor, emb: Tensor) -> Tensor:
        """y (1 + scale), the scale from the embedding, in float32 like the embedding itself."""
        return y * (1 + self.affine(emb)[:, :, None, None]).to(y.dtype)


class UNetC(UNetB):
    """Config C."""

    conv: ClassVar[ConvClass] = UniformConv
    last_conv: ClassVar[ConvClass] = UniformConv
    label_conv: ClassVar[ConvClass] = UniformConv
    norm = ScalingGroupNorm
    noise_features = Fourier
    block = BlockC
    constant_channels = 1

    def scale_label(self, one_hot: Tensor) -> Tensor:
        """Give a one-hot vector unit magnitude."""
        return one_hot * self.config.label_dim**0.5
