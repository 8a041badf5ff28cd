"""Settings by name: the paper's (arXiv 2312.02696v2, Table 6), those for one small GPU and for the included digits.

docs/settings.md says where the numbers for small machines come from, and what they were tried on.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]
"""Fields of `NetworkConfig` and `TrainingConfig` by name."""


@dataclass(frozen=True)
class Preset:
    """Settings under one name; the command line can override each of them."""

    summary: str
    """One line for the help text."""
    network: Settings = field(default_factory=dict)
    """Fields of `NetworkConfig` that differ from its defaults."""
    training: Settings = field(default_factory=dict)
    """Fields of `TrainingConfig` that differ from its defaults."""
    shape: tuple[int, int, int] | None = None
    """(channels, height, width) that the data must have; None: any."""
    rules: Callable[[int, Mapping[str, Any]], Settings] = lambda images, chosen: {}
    """Function of the number of images and the user's choices that returns further fields."""


def learning_rate(width: int) -> float:
    """Learning rate between ramp-up and decay, 0.01 sqrt(192 / width): the paper's sizes follow it within 5 %."""
    return round(0.01 * math.sqrt(192 / max(width, 1)), 4)  # a width below 1 is refused elsewhere


def small_rules(images: int, chosen: Mapping[str, Any], width: int) -> Settings:
    """Settings of a run on one small GPU."""
    visits = min(max(1000 * images, 2 << 20), 16 << 20)
    duration = chosen.get("duration", -(-visits // (128 << 10)) * (128 << 10))
    return {
        "duration": duration,
        "dropout": 0.2 if images < 5_000 else 0.1 if images < 50_000 else 0.05,
        "ref_lr": learning_rate(chosen.get("model_channels", width)),
        "snapshot_every": max(duration // 32, 1),
        "sample_every": max(duration // 16, 1),
    }


def tiny_rules(images: int, chosen: Mapping[str, Any]) -> Settings:
    """Settings of a run on a CPU, which is short: twice the learning rate, little dropout (docs/settings.md)."""
    duration = min(max(64 * images, 128 << 10), 1 << 20)
    return {
        "duration": duration,
        "ref_batches": 400,
        "rampup_images": duration // 20,
        "dropout": 0.1 if images < 5_000 else 0.0,
        "ref_lr": 2 * learning_rate(chosen.get("model_channels", 32)),
        "snapshot_every": duration // 32,
        "sample_every": duration // 4,
        "status_every": duration // 64,
        "checkpoint_every": duration // 4,
    }


def _paper(resolution: int, mega_images: int, width: int, lr: float, dropout: float) -> Preset:
    """Preset of Table 6. ImageNet-64 differs from ImageNet-512 by its noise distribution and an earlier decay."""
    pixels = resolution == 64
    kind = "RGB pixels" if pixels else "SD-VAE latents"
    return Preset(
        summary=f"ImageNet-{resolution}, {kind}, {width} channels",
        network={"model_channels": width, "dropout": dropout},
        training={
            "duration": mega_images << 20,
            "ref_lr": lr,
            "ref_batches": 35_000 if pixels else 70_000,
            "P_mean": -0.8 if pixels else -0.4,
            "P_std": 1.6 if pixels else 1.0,
            "snapshot_precision": "fp16",
            "standardize": False,
        },
        shape=(3 if pixels else 4, 64, 64),
    )


def _small(summary: str, network: Settings, micro_batch: int, P_mean: float, P_std: float) -> Preset:
    """Preset for one GPU of 8 to 24 GB and 1,000 to 100,000 images of any size that the network can halve."""
    return Preset(
        summary=summary,
        network=network,
        training={
            "batch_size": 256,
            "micro_batch": micro_batch,
            "ref_batches": 4_000,
            "rampup_images": 128 << 10,
            "P_mean": P_mean,
            "P_std": P_std,
            "stratified_sigma": True,
            "standardize": True,
            "label_dropout": 0.1,
            "holdout": 500,
            "snapshot_precision": "fp16",
            "status_every": 16 << 10,
            "checkpoint_every": 512 << 10,
        },
        rules=lambda images, chosen: small_rules(images, chosen, network["model_channels"]),
    )


PRESETS: dict[str, Preset] = {
    "digits8": Preset(
        summary="8x8 handwritten digits in two minutes on two CPU cores",
        network={
            "model_channels": 32,
            "channel_mult": (1, 2),
            "num_blocks": 1,
            "attn_resolutions": (4,),
            "channels_per_head": 32,
            "logvar_channels": 32,
        },
        training={
            "batch_size": 64,
            "duration": 83_200,
            "ref_lr": 0.012,
            "ref_batches": 600,
            "rampup_images": 3_200,
            "standardize": True,
            "status_every": 6_400,
            "snapshot_every": 6_400,
            "checkpoint_every": 25_600,
            "sample_every": 25_600,
            "holdout": 97,
            "holdout_every": 12_800,
            "precision": "fp32",
            "workers": 0,
        },
    ),
    "edm2-tiny": Preset(
        summary="your own pixels, 16x16 to 64x64, on a CPU",
        network={
            "model_channels": 32,
            "channel_mult": (1, 2, 2),
            "num_blocks": 1,
            "attn_resolutions": (8,),
            "channels_per_head": 32,
            "logvar_channels": 32,
        },
        training={
            "batch_size": 64,
            "P_mean": -1.2,
            "P_std": 1.2,
            "stratified_sigma": True,
            "standardize": True,
            "label_dropout": 0.1,
            "holdout": 500,
            "snapshot_precision": "fp16",
        },
        rules=tiny_rules,
    ),
    "edm2-small-32": _small(
        "your own pixels up to 32x32 on one GPU of 8 GB",
        {"model_channels": 128, "channel_mult": (1, 2, 2)},
        micro_batch=64,
        P_mean=-1.2,
        P_std=1.2,
    ),
    "edm2-small-64": _small(
        "your own pixels, 64x64 or so, on one GPU of 8 GB",
        {"model_channels": 64},
        micro_batch=32,
        P_mean=-0.8,
        P_std=1.6,
    ),
    "edm2-latent-small": _small(
        "your own latents, 32x32 or 64x64, on one GPU of 8 GB",
        {"model_channels": 96},
        micro_batch=16,
        P_mean=-0.4,
        P_std=1.0,
    ),
    "edm2-img512-xxs": _paper(512, 2048, 64, 0.0170, 0.0),
    "edm2-img512-xs": _paper(512, 2048, 128, 0.0120, 0.0),
    "edm2-img512-s": _paper(512, 2048, 192, 0.0100, 0.0),
    "edm2-img512-m": _paper(512, 2048, 256, 0.0090, 0.1),
    "edm2-img512-l": _paper(512, 1792, 320, 0.0080, 0.1),
    "edm2-img512-xl": _paper(512, 1280, 384, 0.0070, 0.1),
    "edm2-img512-xxl": _paper(512, 896, 448, 0.0065, 0.1),
    "edm2-img64-xs": _paper(64, 1024, 128, 0.0120, 0.0),
    "edm2-img64-s": _paper(64, 1024, 192, 0.0100, 0.0),
    "edm2-img64-m": _paper(64, 2048, 256, 0.0090, 0.1),
    "edm2-img64-l": _paper(64, 1024, 320, 0.0080, 0.1),
    "edm2-img64-xl": _paper(64, 640, 384, 0.0070, 0.1),
}
