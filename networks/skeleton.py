"""What the U-Nets of all configurations share: levels, names, skip connections, the order of things (Section B.1).

Shapes: N images, C channels, H by W pixels, E embedding width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edm2.networks.config import NetworkConfig
from edm2.networks.layers import Conv, Fourier
from edm2.networks.magnitude import ResampleMode, resample
from edm2.networks.precond import UncertaintyHead


class BlockSkeleton(nn.Module, ABC):
    """What a residual block of any configuration has beside its layers.

    Args:
        out_channels: Channels of the output.
        resample_mode: What happens to the resolution at the block's entry.
        resample_filter: Taps of the resampling filter.
        attention: Whether attention follows the residual sum.
        channels_per_head: Channels of an attention head; a block narrower than one head has no attention.
        dropout: Probability to drop an activation between the two convolutions, in training mode.
        clip_act: Bound on the activations that leave the block; None for none.

    Raises:
        ValueError: `out_channels` cannot be split evenly into heads.
    """

    def __init__(
        self,
        out_channels: int,
        resample_mode: ResampleMode,
        resample_filter: Sequence[float],
        attention: bool,
        channels_per_head: int,
        dropout: float,
        clip_act: float | None,
    ) -> None:
        super().__init__()
        self.resample_mode = resample_mode
        self.resample_filter = tuple(resample_filter)
        self.num_heads = out_channels // channels_per_head if attention else 0
        self.dropout = dropout
        self.clip_act = clip_act
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f"{out_channels} channels do not split evenly into {self.num_heads} attention heads")

    @abstractmethod
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""

    def resample(self, x: Tensor) -> Tensor:
        """Halve, double or keep the resolution."""
        return resample(x, self.resample_mode, self.resample_filter)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout, if there is any."""
        return nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x

    def clip(self, x: Tensor) -> Tensor:
        """Bound the activations, if they are to be."""
        if self.clip_act is None:
            return x
        in_place = not torch.is_grad_enabled()  # `x` is a sum that the block has made
        return nn.functional.hardtanh(x, -self.clip_act, self.clip_act, inplace=in_place)


class UNetSkeleton(nn.Module, ABC):
    """F(x; c_noise, label): encoder, decoder and the embedding that modulates every block.

    The encoder halves the resolution from level to level; its every output is kept as a skip connection. The decoder
    climbs back up and consumes these outputs in reverse order. Blocks are named by their resolution, as in
    `enc.64x64_block0`, and these names are the published checkpoints'. A configuration fills in the class attributes
    and the abstract methods.

    Args:
        config: Widths, depths, attention; see `NetworkConfig`.

    Raises:
        ValueError: channels that cannot be split into heads or groups.
    """

    conv: ClassVar[type[Conv]]
    """Convolutions and linear layers."""
    fourier: ClassVar[type[Fourier]]
    """Features of the noise level."""
    encoder_block: ClassVar[type[BlockSkeleton]]
    decoder_block: ClassVar[type[BlockSkeleton]]
    constant_channels: ClassVar[int]
    """Channels of ones appended to the image, in place of biases."""
    memory_format: ClassVar[torch.memory_format] = torch.contiguous_format
    """How activations lie in memory; it pays if convolution weights lie alike."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.build_embedding(config.noise_channels, config.emb_channels)
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        self._takes_skip = self._build_decoder(self._build_encoder())
        self.build_output(config.widths[0])

    @abstractmethod
    def build_embedding(self, noise_channels: int, emb_channels: int) -> None:
        """Make the layers that `embed` uses."""

    @abstractmethod
    def build_output(self, channels: int) -> None:
        """Make the layers that `leave` uses."""

    @abstractmethod
    def embed(self, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """Noise level [N] and one-hot labels [N, label_dim] -> embedding [N, E]."""

    @abstractmethod
    def concat(self, x: Tensor, skip: Tensor) -> Tensor:
        """Bring in a skip connection: [N, C, H, W] and [N, C', H, W] -> [N, C + C', H, W]."""

    @abstractmethod
    def leave(self, x: Tensor) -> Tensor:
        """From the last block's channels to the image's: [N, C, H, W] -> [N, img_channels, H, W]."""

    def uncertainty_head(self) -> UncertaintyHead:
        """New layers for u(sigma), of the same kinds as those of the network."""
        channels = self.config.logvar_channels
        return UncertaintyHead(self.fourier(channels), self.conv(channels, 1))

    def block_options(self) -> dict[str, Any]:
        """Options that all blocks have in common."""
        config = self.config
        return {
            "emb_channels": config.emb_channels,
            "resample_filter": config.resample_filter,
            "channels_per_head": config.channels_per_head,
            "dropout": config.dropout,
            "clip_act": config.clip_act,
        }

    def _level_name(self, level: int) -> str:
        height, width = (side >> level for side in self.config.size)
        return f"{height}x{width}"

    def _has_attention(self, level: int) -> bool:
        return max(self.config.size) >> level in self.config.attn_resolutions

    def _build_encoder(self) -> list[int]:
        """Fill `enc`; return the channels of each of its outputs, in order."""
        block = partial(self.encoder_block, **self.block_options())
        outputs = []
        for level, width in enumerate(self.config.widths):
            name = self._level_name(level)
            if level == 0:
                channels = self.config.img_channels + self.constant_channels
                self.enc[f"{name}_conv"] = self.conv(channels, width, kernel=(3, 3))
                outputs.append(width)
            else:
                self.enc[f"{name}_down"] = block(outputs[-1], outputs[-1], resample_mode="down")
                outputs.append(outputs[-1])
            for i in range(self.config.num_blocks):
                self.enc[f"{name}_block{i}"] = block(outputs[-1], width, attention=self._has_attention(level))
                outputs.append(width)
        return outputs

    def _build_decoder(self, skip_channels: list[int]) -> frozenset[str]:
        """Fill `dec`; return the names of the blocks that take a skip connection."""
        block = partial(self.decoder_block, **self.block_options())
        skips = list(skip_channels)
        channels = skips[-1]
        takes_skip = []
        for level, width in reversed(list(enumerate(self.config.widths))):
            name = self._level_name(level)
            if level == len(self.config.widths) - 1:
                self.dec[f"{name}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{name}_in1"] = block(channels, channels)
            else:
                self.dec[f"{name}_up"] = block(channels, channels, resample_mode="up")
            for i in range(self.config.num_blocks + 1):
                takes_skip.append(f"{name}_block{i}")
                self.dec[takes_skip[-1]] = block(channels + skips.pop(), width, attention=self._has_attention(level))
                channels = width
        return frozenset(takes_skip)

    def enter(self, x: Tensor) -> Tensor:
        """Append the constant channels: [N, img_channels, H, W] -> [N, img_channels + constant_channels, H, W]."""
        x = torch.cat([x, torch.ones_like(x[:, : self.constant_channels])], dim=1)
        return x.contiguous(memory_format=self.memory_format)

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """Raw output F.

        Args:
            x: [N, C, H, W], already scaled by c_in, in the dtype to compute in.
            c_noise: [N], ln(sigma) / 4; the embedding is computed in its dtype.
            class_labels: [N, label_dim], ignored by an unconditional network.

        Returns:
            [N, C, H, W] in the dtype of `x`.
        """
        emb = self.embed(c_noise, class_labels)
        x = self.enter(x)
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("_conv") else layer(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if name in self._takes_skip:
                x = self.concat(x, skips.pop())
            x = block(x, emb)
        return self.leave(x)


def blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks of encoder and decoder of a `Precond`, in their order."""
    children = [*net.unet.enc.children(), *net.unet.dec.children()]
    return [module for module in children if isinstance(module, BlockSkeleton)]  # the input convolution is no block
