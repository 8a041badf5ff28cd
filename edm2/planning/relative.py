"""Settings as parts of a run, for runs of any length: the rules of docs/settings.md, and advice on what cannot work."""

import math
from collections.abc import Mapping

from edm2.planning.presets import Settings
from edm2.training import TrainingConfig

EVALUATIONS_PER_STEP = 3
"""Evaluations of an image that take as long as training on it."""

HELD_OUT_EVALUATIONS = 2 * 9
"""Evaluations per held-out image in a measurement of the loss: nine noise levels, and as many training images."""

GRID_EVALUATIONS, GRID_EVALUATIONS_OF_MAP = 40 * 35, 40 * 2
"""Evaluations of a grid of samples: forty images, 18 steps of Heun's method, or 2 jumps of a flow map."""

SHARE_OF_BUDGET = 0.9
"""Part of a budget for steps; the rest is for the start, snapshots, samples and measurements."""

MOST_VISITS = 5_000
"""Visits per image beyond which nearly every network has learned its images by heart."""


def duration_within(seconds: float, images_per_second: float, batch_size: int) -> int:
    """Images of a run that takes so long, in whole steps; at least one."""
    steps = SHARE_OF_BUDGET * seconds * images_per_second / batch_size
    return max(int(steps), 1) * batch_size


def relative_rules(duration: int, images: int, proposed: Mapping[str, object], holdout: int | None = None) -> Settings:
    """Settings that follow from the length of a run.

    Ramp-up takes at most a twentieth of it, decay begins after a fifth at the latest, snapshots are written 32 times;
    measuring the held-out loss and drawing samples each take at most a twentieth of the time.

    Args:
        proposed: The preset's settings, which bound these.
        holdout: Images to hold out, if that is decided already.
    """
    own: dict[str, int] = {name: value for name, value in proposed.items() if isinstance(value, int)}
    batch = own["batch_size"]
    if holdout is None:
        holdout = min(own.get("holdout", 0), images // 10, duration // 512)
    return {
        "duration": math.ceil(duration / batch) * batch,
        "rampup_images": min(own.get("rampup_images", duration), duration // 20),
        "ref_batches": max(min(own.get("ref_batches", duration), duration // (5 * batch)), 1),
        "holdout": holdout,
        "snapshot_every": max(duration // 32, 1),
        "sample_every": max(duration // 4, 1),
        "status_every": max(duration // 64, 1),
        "holdout_every": measured_every(duration, holdout),
        "checkpoint_every": max(duration // 4, 1),  # and every ten minutes
    }


def measured_every(duration: int, holdout: int) -> int:
    """Images between measurements of the held-out loss: 16 of them in a run, in at most a twentieth of its time."""
    return max(duration // 16, 20 * (holdout * HELD_OUT_EVALUATIONS // EVALUATIONS_PER_STEP), 1)


FOLLOWING = tuple(name for name in relative_rules(1 << 20, 1000, {"batch_size": 64}) if name != "duration")
"""Settings that follow from the length of a run, decided once, when it begins."""


def advice(config: TrainingConfig, images: int) -> list[str]:
    """List what cannot work in a run on so many images, each in one line with the better value, as options."""
    lines, trained = [], images - config.holdout
    if config.rampup_images and config.duration < 2 * config.rampup_images:
        lines.append(
            f"the learning rate still rises for {min(1, config.rampup_images / config.duration):.0%} of the run; "
            f"try --rampup {config.duration // 20}"
        )
    if config.duration > MOST_VISITS * trained:
        lines.append(
            f"each image is visited {config.duration / trained:,.0f} times, which learns them by heart; "
            f"try --duration {1000 * trained} at most, or more images"
        )
    if config.holdout > images / 10:
        lines.append(f"{config.holdout / images:.0%} of the images are held out; try --holdout {images // 10}")
    if (share := _share_of_measuring(config)) > 0.1:
        fewer = int(config.holdout / share / 20)
        lines.append(f"measuring held-out images takes about {share:.0%} of the time; try --holdout {fewer}")
    if (share := _share_of_drawing(config)) > 0.1:
        lines.append(
            f"drawing samples takes about {share:.0%} of the time; try --sample {math.ceil(config.duration / 2)}"
        )
    return lines


def _share_of_measuring(config: TrainingConfig) -> float:
    times = config.duration / (config.holdout_every or config.snapshot_every)
    return times * config.holdout * HELD_OUT_EVALUATIONS / EVALUATIONS_PER_STEP / config.duration


def _share_of_drawing(config: TrainingConfig) -> float:
    if config.sample_every is None:
        return 0.0
    grid = GRID_EVALUATIONS if config.distillation is None else GRID_EVALUATIONS_OF_MAP
    return (config.duration / config.sample_every + 6) * grid / EVALUATIONS_PER_STEP / config.duration
