"""From a preset, a dataset and the user's choices to the description of a run, and what that run will be."""

import math
from typing import Any

import torch

from edm2.networks import NetworkConfig, build_network
from edm2.presets import PRESETS
from edm2.training import Dataset, TrainingConfig

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def plan_run(
    dataset: Dataset, data: str, out: str, preset_name: str, conditional: bool | None, choices: dict[str, Any]
) -> TrainingConfig:
    """The run that trains on `dataset`.

    Args:
        dataset: Opened data; decides resolution, channels and classes.
        data: The dataset's name or path, as the run's configuration records it.
        out: Run folder.
        preset_name: Key of `PRESETS`.
        conditional: Train with labels; None: if the dataset has any.
        choices: Fields of `NetworkConfig` and `TrainingConfig` that override the preset.

    Raises:
        ValueError: an unknown preset, or choices that do not fit together or do not fit the data.
    """
    if preset_name not in PRESETS:
        raise ValueError(f"preset {preset_name!r} is unknown; there are {', '.join(PRESETS)}")
    preset = PRESETS[preset_name]
    stored, height, width = dataset.shape
    channels = stored // 2 if dataset.kind == "moments" else stored  # mean and standard deviation of each
    if preset.shape not in (None, (channels, height, width)):
        raise ValueError(
            f"preset {preset_name} is for images of (channels, height, width) = {preset.shape}, "
            f"but {data} has {(channels, height, width)}; choose another preset or dataset"
        )
    if conditional and not dataset.num_classes:
        raise ValueError(f"{data} has no labels, which --cond needs")
    label_dim = dataset.num_classes if conditional is None or conditional else 0
    network_fields = NetworkConfig.__dataclass_fields__
    network = NetworkConfig(
        img_resolution=height if height == width else (height, width),
        img_channels=channels,
        label_dim=label_dim,
        **preset.network | {name: value for name, value in choices.items() if name in network_fields},
    )
    few = {"holdout": min(preset.training.get("holdout", 0), len(dataset) // 10)}  # of a small dataset, not too many
    training = preset.training | few | {name: value for name, value in choices.items() if name not in network_fields}
    config = TrainingConfig(data=data, out=out, network=network, preset=preset_name, **training)
    if config.holdout >= len(dataset):
        raise ValueError(f"holdout={config.holdout} leaves none of the {len(dataset)} images of {data} to train on")
    return config


def describe_run(config: TrainingConfig, dataset: Dataset) -> list[tuple[str, str]]:
    """What a run will be, as pairs of a subject and a phrase, before anything is written."""
    with torch.device("meta"):
        net = build_network(config.network)
    parameters = sum(p.numel() for p in net.parameters())
    times = _snapshot_times(config)
    snapshots = times * len(config.sigma_rels)
    disk = snapshots * parameters * BYTES[config.snapshot_precision]
    disk += (config.keep_checkpoints + 1) * parameters * 4 * (3 + len(config.sigma_rels))
    height, width = config.network.size
    lengths = " and ".join(f"{s:g}" for s in config.sigma_rels)
    return [
        ("data", f"{config.data}: {len(dataset):,} images{_held_out(config)}, {_classes(config, dataset)}"),
        ("network", f"config {config.network.config}, {parameters:,} parameters, {height}x{width}"),
        ("training", f"{config.duration:,} images in steps of {config.batch_size}"),
        ("device", f"{config.device}, {config.precision}, {config.images_per_forward} images per forward pass"),
        ("learning rate", _schedule(config)),
        ("snapshots", f"{snapshots} ({times} times, EMA lengths {lengths}), {config.snapshot_precision}"),
        ("disk", f"about {_size(disk)} in {config.out}, with the last {config.keep_checkpoints} checkpoints"),
    ]


def _snapshot_times(config: TrainingConfig) -> int:
    """Snapshots come with the first step that reaches a multiple of `snapshot_every`, and with the last step."""
    every = max(config.snapshot_every, config.batch_size)
    due = config.duration // every
    last_due = math.ceil(due * every / config.batch_size) * config.batch_size
    return due + (last_due < config.duration)


def _held_out(config: TrainingConfig) -> str:
    return f", {config.holdout:,} of them held out" if config.holdout else ""


def _classes(config: TrainingConfig, dataset: Dataset) -> str:
    if config.network.label_dim:
        return f"{config.network.label_dim} classes"
    return "labels not used" if dataset.num_classes else "no labels"


def _schedule(config: TrainingConfig) -> str:
    text = f"{config.ref_lr:g}"
    if config.rampup_images:
        text += f", rising over {config.rampup_images:,} images"
    if config.ref_batches:
        text += f", falling after {int(config.ref_batches * config.batch_size):,}"
    return text


def _size(num_bytes: float) -> str:
    unit = min(int(math.log(max(num_bytes, 1), 1000)), 4)
    return f"{num_bytes / 1000**unit:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
