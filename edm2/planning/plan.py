"""Configuration of a run, from a preset, a dataset and the user's choices."""

import math
from collections.abc import Mapping
from typing import Any

from edm2.networks import NetworkConfig
from edm2.planning.conditions import label_is_source
from edm2.planning.ladder import ladder_settings
from edm2.planning.presets import PRESETS, Settings
from edm2.planning.relative import relative_rules
from edm2.training import Dataset, TrainingConfig
from edm2.training.data.batches import seen_shape
from edm2.training.data.own_codec import own_codec


def default_preset(dataset: Dataset, data: str, device: str, codec: str | None = None) -> str:
    """Preset for a dataset, given its name or path, on a kind of device, if the user names none.

    What a codec of the user's own makes of images counts as latents.
    """
    if data == "digits" and codec is None:
        return "digits8"
    if dataset.kind == "pixels" and device == "cpu" and max(_seen_shape(dataset, codec)[1:]) <= 64:
        return "edm2-tiny"
    if dataset.kind == "moments" or codec is not None:
        return "edm2-latent-small"
    return "edm2-small-32" if max(dataset.shape[1:]) <= 32 else "edm2-small-64"


def plan_run(
    dataset: Dataset,
    data: str,
    out: str,
    preset_name: str,
    conditional: bool | None,
    choices: Mapping[str, Any],
    architecture: str = "G",
    relative: bool = False,
) -> TrainingConfig:
    """Configure a run that trains on `dataset`.

    Args:
        dataset: Opened data; decides resolution, channels and classes.
        data: The dataset's name or path, as the run's configuration records it.
        conditional: Train with labels; None: if the dataset has any.
        choices: Fields of `NetworkConfig` and `TrainingConfig` that override the preset.
        architecture: Config of the paper's ladder, A to G; it changes the preset's settings.
        relative: Fit the preset's schedule and intervals to the duration (`relative_rules`), which is chosen then.
    """
    if preset_name not in PRESETS:
        raise ValueError(f"preset {preset_name!r} is unknown; there are {', '.join(PRESETS)}")
    preset = PRESETS[preset_name]
    codec: str | None = choices.get("codec")
    channels, height, width = _seen_shape(dataset, codec)
    if preset.shape not in (None, (channels, height, width)):
        raise ValueError(
            f"preset {preset_name} is for images of (channels, height, width) = {preset.shape}, "
            f"but {data} has {(channels, height, width)}; choose another preset or dataset"
        )
    if conditional and not dataset.num_classes:
        raise ValueError(f"{data} has no labels, which --cond needs")
    # A preset that says otherwise prevails.
    measured: dict[str, Any] = {"standardize": True} if dataset.pixel_stats else {}
    proposed = measured | preset.network | preset.training | dict(preset.rules(len(dataset), choices))
    if relative:
        duration = choices.get("duration", proposed["duration"])
        proposed |= relative_rules(duration, len(dataset), proposed | dict(choices), choices.get("holdout"))
    proposed = ladder_settings(architecture, proposed)
    settings = {**_adapted(proposed, len(dataset), choices), **choices}
    network = {name: value for name, value in settings.items() if name in NetworkConfig.__dataclass_fields__}
    training = {name: value for name, value in settings.items() if name not in network}
    if dataset.kind != "moments" and codec is None:
        _check_sides(data, height, width, len(network.get("channel_mult", NetworkConfig.channel_mult)) - 1)
    label_dim = dataset.num_classes if conditional is None or conditional else 0
    if choices.get("label_dropout") and not label_dim:
        raise ValueError(f"label_dropout={choices['label_dropout']:g} has no labels to drop: leave it out")
    if label_dim and network.get("conditions"):
        network.setdefault("label_source", label_is_source(training.get("init")))
    config = TrainingConfig(
        data=data,
        out=out,
        network=NetworkConfig(
            img_resolution=height if height == width else (height, width),
            img_channels=channels,
            label_dim=label_dim,
            **network,
        ),
        preset=preset_name,
        **training,
    )
    check_holdout(config, len(dataset))
    return config


def check_holdout(config: TrainingConfig, images: int) -> None:
    """Raise ValueError if a run holds out all of its images."""
    if config.holdout >= images:
        raise ValueError(f"holdout={config.holdout} leaves none of the {images} images of {config.data} to train on")


def _seen_shape(dataset: Dataset, codec: str | None) -> tuple[int, ...]:
    """(C, H, W) of what the network sees of an image."""
    if codec is not None:
        return seen_shape(dataset, own_codec(codec))
    stored, height, width = dataset.shape
    return stored // 2 if dataset.kind == "moments" else stored, height, width  # mean and standard deviation of each


def _check_sides(data: str, height: int, width: int, halvings: int) -> None:
    """Refuse images that the network cannot halve, with the command that makes them fit."""
    unit = 1 << halvings
    if height % unit or width % unit:
        near = max(unit, round(min(height, width) / unit) * unit)
        raise ValueError(
            f"{data}: its first image has {height}x{width} pixels, which cannot be halved {halvings} times, as this "
            f"network does; make all images alike with edm2 dataset convert {data} OUT.zip --resolution {near}"
        )


def _adapted(proposed: Settings, images: int, choices: Mapping[str, Any]) -> Settings:
    """Adapt a preset's settings to few images (smaller hold-out) and to a chosen batch (whole steps, micro-batches)."""
    adapted = proposed | {"holdout": min(proposed.get("holdout", 0), images // 10)}
    batch = choices.get("batch_size", 0)
    if batch > 0:  # `TrainingConfig` refuses others
        duration = proposed.get("duration", TrainingConfig.duration)
        adapted["duration"] = math.ceil(duration / batch) * batch
        if most := proposed.get("micro_batch"):
            adapted["micro_batch"] = next(n for n in range(min(most, batch), 0, -1) if batch % n == 0)
    return adapted
