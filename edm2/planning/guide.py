"""The run of a guide for autoguidance (arXiv 2406.02507): the run of another network, narrower and shorter."""

from dataclasses import replace

import torch

from edm2.networks import NetworkConfig, build_network
from edm2.training import TrainingConfig

SHARE = 16
"""A guide trains on this fraction of the run's images: T/16 was best for the paper's S, T/8 for its ImageNet-64."""

MOST = 4
"""Smallest such number: a guide trained for longer is too good."""

TIMES = 32
"""Snapshots of a guide."""


def guide_config(
    config: TrainingConfig, out: str, channels: int | None = None, duration: int | None = None
) -> TrainingConfig:
    """Configure the guide of a run: the same data and settings, the next smaller width, few images.

    The learning rate follows the width (`learning_rate` of edm2.planning.presets), the ramp-up is an eighth of the
    duration at most, and a cooldown the same fraction of it. Everything else is the run's.

    Args:
        config: The run.
        out: Folder of the guide.
        channels: Width; None: `narrower`.
        duration: Images to train on, rounded up to whole steps; None: a sixteenth of the run's.

    Raises:
        ValueError: the network is external, the run a distillation, the duration above a fourth of the run's, or the
            width does not fit.
    """
    if config.distillation is not None:
        raise ValueError(
            f"{config.out} is distilled, but a guide learns from data: guide its teacher, and distil the two together; "
            "or choose other guides: --guides early,ema,dropout"
        )
    network = config.own_network
    most = config.duration // MOST
    duration = config.duration // SHARE if duration is None else duration
    if not 0 < duration <= max(most, config.batch_size):
        raise ValueError(f"a guide of {duration:,} images is too well trained: give at most a fourth, {most:,}")
    duration = -(-duration // config.batch_size) * config.batch_size
    width = channels or narrower(network)
    every = max(duration // TIMES, 1)
    return replace(
        config,
        network=replace(network, model_channels=width),
        out=out,
        duration=duration,
        ref_lr=config.ref_lr * (network.model_channels / width) ** 0.5,
        rampup_images=min(config.rampup_images, duration // 8),
        snapshot_every=every,
        status_every=min(config.status_every, every),
        cooldown_images=config.cooldown_images * duration // config.duration,
        checkpoint_every=min(config.checkpoint_every, duration),
        keep_snapshots=None,
        sample_every=None,
        traditional_ema=None,
        budget=None,
        init=None,
    )


def narrower(network: NetworkConfig) -> int:
    """Width of a guide: the multiple of 16 nearest to two thirds that divides into heads; that of the network, if none.

    192 -> 128, 64 -> 48, 32 -> 16.
    """
    width = network.model_channels
    for candidate in sorted(range(16, width, 16), key=lambda channels: abs(channels - 2 * width / 3)):
        try:
            with torch.device("meta"):
                build_network(replace(network, model_channels=candidate))
            return candidate
        except ValueError:  # heads
            continue
    return width
