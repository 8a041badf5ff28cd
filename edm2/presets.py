"""Settings by name: the paper's (arXiv 2312.02696v2, Table 6) and those of the embedded digits."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """What a name stands for; every value can be overridden on the command line."""

    summary: str
    """One line for people."""
    network: dict[str, Any] = field(default_factory=dict)
    """Fields of `NetworkConfig` that differ from its defaults."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of `TrainingConfig` that differ from its defaults."""
    shape: tuple[int, int, int] | None = None
    """(channels, height, width) that the data must have; None: any."""


def _paper(resolution: int, mega_images: int, width: int, lr: float, dropout: float) -> Preset:
    """A model of Table 6. ImageNet-64 differs from ImageNet-512 by its noise distribution and an earlier decay."""
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
        },
        shape=(3 if pixels else 4, 64, 64),
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
            "workers": 0,
        },
    ),
    "small": Preset(
        summary="a first model for a few thousand images of any size, on one GPU",
        network={"model_channels": 64, "channel_mult": (1, 2, 3), "num_blocks": 2},
        training={
            "batch_size": 256,
            "duration": 4 << 20,
            "ref_lr": 0.017,  # 0.01 sqrt(192 / width), the rule that the paper's sizes follow within 5 %
            "ref_batches": 4_000,
            "rampup_images": 128 << 10,
            "status_every": 16 << 10,
            "snapshot_every": 128 << 10,
            "checkpoint_every": 512 << 10,
            "sample_every": 256 << 10,
        },
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
