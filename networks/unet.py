"""The U-Net of config G (Figure 22). Shapes: N images, C channels, H by W pixels, E embedding width."""

from functools import partial

import torch
from torch import Tensor, nn

from edm2.networks.blocks import DecoderBlock, EncoderBlock
from edm2.networks.config import NetworkConfig
from edm2.networks.layers import MPConv, MPFourier
from edm2.networks.magnitude import mp_cat, mp_silu, mp_sum


class UNet(nn.Module):
    """F(x; c_noise, label): encoder, decoder and the embedding that modulates every block.

    The encoder halves the resolution from level to level; its every output is kept as a skip connection. The decoder
    climbs back up and consumes these outputs in reverse order. A channel of ones takes the place of biases. Blocks are
    named by their resolution, as in `enc.64x64_block0`, and these names are the published checkpoints'.

    Args:
        config: Widths, depths, attention and balances; see `NetworkConfig`.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.model_channels * mult for mult in config.channel_mult]
        noise_channels = config.model_channels * (config.channel_mult_noise or config.channel_mult[0])
        emb_channels = config.model_channels * (config.channel_mult_emb or max(config.channel_mult))

        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, emb_channels)
        self.emb_label = MPConv(config.label_dim, emb_channels) if config.label_dim else None
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        skip_channels = self._build_encoder(widths, emb_channels)
        self._takes_skip = self._build_decoder(widths, emb_channels, skip_channels)
        self.out_conv = MPConv(widths[0], config.img_channels, kernel=(3, 3))

    def _level_name(self, level: int) -> str:
        height, width = (side >> level for side in self.config.size)
        return f"{height}x{width}"

    def _has_attention(self, level: int) -> bool:
        return max(self.config.size) >> level in self.config.attn_resolutions

    def _block_options(self) -> dict[str, object]:
        config = self.config
        return {
            "resample_filter": config.resample_filter,
            "channels_per_head": config.channels_per_head,
            "dropout": config.dropout,
            "res_balance": config.res_balance,
            "attn_balance": config.attn_balance,
            "clip_act": config.clip_act,
        }

    def _build_encoder(self, widths: list[int], emb_channels: int) -> list[int]:
        """Fill `enc`; return the channels of each of its outputs, in order."""
        block = partial(EncoderBlock, emb_channels=emb_channels, **self._block_options())
        outputs = []
        for level, width in enumerate(widths):
            name = self._level_name(level)
            if level == 0:
                self.enc[f"{name}_conv"] = MPConv(self.config.img_channels + 1, width, kernel=(3, 3))
                outputs.append(width)
            else:
                self.enc[f"{name}_down"] = block(outputs[-1], outputs[-1], resample_mode="down")
                outputs.append(outputs[-1])
            for i in range(self.config.num_blocks):
                self.enc[f"{name}_block{i}"] = block(outputs[-1], width, attention=self._has_attention(level))
                outputs.append(width)
        return outputs

    def _build_decoder(self, widths: list[int], emb_channels: int, skip_channels: list[int]) -> frozenset[str]:
        """Fill `dec`; return the names of the blocks that take a skip connection."""
        block = partial(DecoderBlock, emb_channels=emb_channels, **self._block_options())
        skips = list(skip_channels)
        channels = skips[-1]
        takes_skip = []
        for level, width in reversed(list(enumerate(widths))):
            name = self._level_name(level)
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{name}_in1"] = block(channels, channels)
            else:
                self.dec[f"{name}_up"] = block(channels, channels, resample_mode="up")
            for i in range(self.config.num_blocks + 1):
                takes_skip.append(f"{name}_block{i}")
                self.dec[takes_skip[-1]] = block(channels + skips.pop(), width, attention=self._has_attention(level))
                channels = width
        return frozenset(takes_skip)

    def embed(self, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """Noise level [N] and one-hot labels [N, label_dim] -> embedding [N, E]."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            one_hot = class_labels * self.config.label_dim**0.5  # unit magnitude for a one-hot vector
            emb = mp_sum(emb, self.emb_label(one_hot), t=self.config.label_balance)
        return mp_silu(emb)

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
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("_conv") else layer(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if name in self._takes_skip:
                x = mp_cat(x, skips.pop(), t=self.config.concat_balance)
            x = block(x, emb)
        return self.out_conv(x, gain=self.out_gain)
