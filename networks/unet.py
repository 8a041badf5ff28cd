"""The U-Net of config G (Figure 22), and the levels of blocks that the U-Nets of all configurations are made of.

Shapes: N images, C channels, H by W pixels, E embedding width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.blocks import SILU_SCALE, DecoderBlock, EncoderBlock
from edm2.networks.conditions import (
    CrossAttention,
    EmbeddedCondition,
    ImageCondition,
    Prepared,
    SourceEmbedding,
    TokenCondition,
    TokenContext,
    mp_sum_of_sources,
)
from edm2.networks.config import NetworkConfig
from edm2.networks.layers import MPConv, MPFourier
from edm2.networks.magnitude import mp_cat, mp_sum_weights


class UNet(nn.Module):
    """F(x; c_noise, label) of config G: every layer, sum and concatenation preserves magnitude.

    A channel of ones beside the image takes the place of biases. Parameters have the names of the published EDM2
    checkpoints.

    Args:
        config: Widths, depths, attention; see `NetworkConfig`.

    Raises:
        ValueError: channels that cannot be split into heads, or conditions that are tokens without any head.
    """

    conv = MPConv
    fourier = MPFourier
    memory_format = torch.channels_last
    """Layout of activations and weights in memory: convolutions and sums over channels are faster in this one."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        two_terms = config.label_dim and not config.label_source
        noise_weight, label_weight = mp_sum_weights(config.label_balance) if two_terms else (1.0, 1.0)
        label_scale = config.label_dim**0.5 * label_weight  # a one-hot vector has magnitude 1 / sqrt(label_dim)
        self.emb_fourier = MPFourier(config.noise_channels, config.fourier_bandwidth)
        self.emb_noise = MPConv(config.noise_channels, config.emb_channels, scale=noise_weight)
        self.emb_label = MPConv(config.label_dim, config.emb_channels, scale=label_scale) if config.label_dim else None
        sources = [c for c in config.conditions if isinstance(c, EmbeddedCondition)]
        layers = {c.name: c.layer(config.noise_channels, config.emb_channels) for c in sources}
        self.emb_conditions = nn.ModuleDict({name: SourceEmbedding(layer) for name, layer in layers.items()})
        if config.label_source:
            self.label_gain = nn.Parameter(torch.ones([]))
        self.images = [c for c in config.conditions if isinstance(c, ImageCondition)]
        token_sizes = {c.name: c.size for c in config.conditions if isinstance(c, TokenCondition)}
        self.contexts = nn.ModuleDict({name: TokenContext(size) for name, size in token_sizes.items()})
        options = block_options(config) | {"res_balance": config.res_balance, "attn_balance": config.attn_balance}
        options |= {"token_sizes": token_sizes, "normalized_modulation": config.normalized_modulation}
        channels = config.img_channels + sum(c.input_channels for c in self.images) + 1
        first = MPConv(channels, config.widths[0], (3, 3))
        self.enc, skip_channels = build_encoder(config, first, EncoderBlock, options)
        self.dec = build_decoder(config, skip_channels, DecoderBlock, options)
        if token_sizes and not any(isinstance(module, CrossAttention) for module in self.modules()):
            raise ValueError(
                f"condition {next(iter(token_sizes))}: tokens need attention, and no block is wide enough for a head "
                f"of channels_per_head={config.channels_per_head}; make the network wider"
            )
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.out_conv = MPConv(config.widths[0], config.img_channels, (3, 3))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        class_labels: Tensor | None,
        conditions: Mapping[str, Prepared] | None = None,
        c_target: Tensor | None = None,
    ) -> Tensor:
        """Raw output F.

        Args:
            x: [N, C, H, W], already scaled by c_in, in the dtype to compute in.
            c_noise: [N], ln(sigma) / 4; the embedding is computed in its dtype.
            class_labels: [N, label_dim], ignored by an unconditional network.
            conditions: All further conditions by name, prepared.
            c_target: [N], c_noise of the level that a flow map arrives at; None for a denoiser.

        Returns:
            [N, C, H, W] in the dtype of `x`.
        """
        given = conditions or {}
        if self.config.target_level == "decoder" and c_target is not None:
            emb, decoder_emb = (self.embed(c, class_labels, given) for c in (c_noise, c_target))
        else:
            emb = decoder_emb = self.embed(c_noise, class_labels, given, c_target)
        contexts = {name: context(given[name], x.dtype) for name, context in self.contexts.items()}
        if self.images:  # beside c_in x, and not multiplied by c_in themselves
            x = torch.cat([x, *(image.input(given[image.name], x.dtype) for image in self.images)], dim=1)
        x = append_ones(x).contiguous(memory_format=self.memory_format)
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("_conv") else layer(x, emb, contexts)
            skips.append(x)
        for name, block in self.dec.items():
            if "_block" in name:
                x = mp_cat(x, skips.pop(), t=self.config.concat_balance)  # Eq. 103
            x = block(x, decoder_emb, contexts)
        return self.out_conv(x, gain=self.out_gain)

    def embed(
        self,
        c_noise: Tensor,
        class_labels: Tensor | None,
        conditions: Mapping[str, Prepared] | None = None,
        c_target: Tensor | None = None,
    ) -> Tensor:
        """Embedding of noise level, labels and other sources, computed in the dtype of `c_noise`.

        [N], [N, label_dim], prepared conditions by name, and [N] of the level to arrive at -> [N, E].
        """
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if c_target is not None:  # a mean, no MP-sum: where both levels are one, this is the denoiser to the bit
            emb = (emb + self.emb_noise(self.emb_fourier(c_target))) / 2
        given = conditions or {}
        sources = [embedding(given[name]) for name, embedding in self.emb_conditions.items()]
        if self.emb_label is not None and class_labels is not None:  # `Precond` gives some to all networks with classes
            label = self.emb_label(class_labels)
            if self.config.label_source:
                sources.append((label, self.label_gain * class_labels.any(dim=1, keepdim=True)))
            else:
                emb = emb + label  # MP-sum (Eq. 88): its weights are the layers' scales
        if sources:
            emb = mp_sum_of_sources(emb, sources)
        return F.silu(emb) * SILU_SCALE


# ----------------------------------------------------------------------------------------------------------------------
# Levels of blocks: each level after the first halves the resolution. Names are those of the published checkpoints.


def build_encoder(
    config: NetworkConfig, first: nn.Module, block: Callable[..., nn.Module], options: dict
) -> tuple[nn.ModuleDict, list[int]]:
    """Encoder from the full resolution down.

    Args:
        config: Widths, depths, attention.
        first: Input convolution.
        block: Makes a block from (in_channels, out_channels, **options).
        options: Options that all blocks have in common.

    Returns:
        Layers by name, and the channels of each one's output, which are those of the skip connections.
    """
    layers, channels = nn.ModuleDict(), []
    for level, width in enumerate(config.widths):
        name = level_name(config, level)
        if level == 0:
            layers[f"{name}_conv"] = first
            channels.append(width)
        else:
            layers[f"{name}_down"] = block(channels[-1], channels[-1], resample_mode="down", **options)
            channels.append(channels[-1])
        for i in range(config.num_blocks):
            attention = has_attention(config, level)
            layers[f"{name}_block{i}"] = block(channels[-1], width, attention=attention, **options)
            channels.append(width)
    return layers, channels


def build_decoder(
    config: NetworkConfig, skip_channels: list[int], block: Callable[..., nn.Module], options: dict
) -> nn.ModuleDict:
    """Decoder from the lowest resolution up; its blocks called `block` take the skip connections, the last one first.

    Arguments as of `build_encoder`; `skip_channels` are those of the encoder's outputs.
    """
    layers, skips = nn.ModuleDict(), list(skip_channels)
    channels = skips[-1]
    for level, width in reversed(list(enumerate(config.widths))):
        name = level_name(config, level)
        if level == len(config.widths) - 1:
            layers[f"{name}_in0"] = block(channels, channels, attention=True, **options)
            layers[f"{name}_in1"] = block(channels, channels, **options)
        else:
            layers[f"{name}_up"] = block(channels, channels, resample_mode="up", **options)
        for i in range(config.num_blocks + 1):
            attention = has_attention(config, level)
            layers[f"{name}_block{i}"] = block(channels + skips.pop(), width, attention=attention, **options)
            channels = width
    return layers


def block_options(config: NetworkConfig) -> dict[str, Any]:
    """Options that the blocks of all configurations have in common."""
    names = ("emb_channels", "resample_filter", "channels_per_head", "dropout", "clip_act")
    return {name: getattr(config, name) for name in names}


def level_name(config: NetworkConfig, level: int) -> str:
    """Resolution of a level, height before width: "32x32"."""
    height, width = (side >> level for side in config.size)
    return f"{height}x{width}"


def has_attention(config: NetworkConfig, level: int) -> bool:
    """Return True if the blocks of a level have attention."""
    return max(config.size) >> level in config.attn_resolutions


def append_ones(x: Tensor) -> Tensor:
    """Append a channel of ones: [N, C, H, W] -> [N, C + 1, H, W]."""
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
