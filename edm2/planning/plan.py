"""From a preset, a dataset and the user's choices to the description of a run, and what that run will be."""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from edm2.networks import NetworkConfig
from edm2.planning.costs import (
    TRAINING_FLOPS,
    count_flops,
    count_parameters,
    disk_forecast,
    estimate_memory,
    largest_micro_batch,
)
from edm2.planning.ladder import ladder_settings
from edm2.planning.presets import PRESETS, Settings
from edm2.post_hoc_ema import reconstruction_error
from edm2.post_hoc_ema.planning import MOST_SNAPSHOTS
from edm2.training import Dataset, TrainingConfig
from edm2.training.run.disk import DiskForecast, free_space, used_space
from edm2.training.run.speed import with_unit

FAR_OFF = 0.2
"""Relative difference between the data's standard deviation and the network's sigma_data that deserves a warning."""

Lines = list[tuple[str, str]]


def default_preset(dataset: Dataset, data: str) -> str:
    """The preset for a dataset (and its name or path) about which nothing else was said."""
    if data == "digits":
        return "digits8"
    if dataset.kind == "moments":
        return "edm2-latent-small"
    return "edm2-small-32" if max(dataset.shape[1:]) <= 32 else "edm2-small-64"


def plan_run(
    dataset: Dataset,
    data: str,
    out: str,
    preset_name: str,
    conditional: bool | None,
    choices: Mapping[str, Any],
    letter: str = "G",
) -> TrainingConfig:
    """The run that trains on `dataset`.

    Args:
        dataset: Opened data; decides resolution, channels and classes.
        data: The dataset's name or path, as the run's configuration records it.
        out: Run folder.
        preset_name: Key of `PRESETS`.
        conditional: Train with labels; None: if the dataset has any.
        choices: Fields of `NetworkConfig` and `TrainingConfig` that override the preset.
        letter: Configuration of the paper's ladder, which changes the preset's settings.

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
    measured = {"standardize": True} if dataset.pixel_stats else {}
    proposed = measured | preset.network | preset.training | preset.rules(len(dataset), choices)
    proposed = ladder_settings(letter, proposed)
    network, training = _divided(_fitted(proposed, len(dataset), choices) | choices)
    if dataset.kind != "moments":
        _check_sides(data, height, width, len(network.get("channel_mult", NetworkConfig.channel_mult)) - 1)
    config = TrainingConfig(
        data=data,
        out=out,
        network=NetworkConfig(
            img_resolution=height if height == width else (height, width),
            img_channels=channels,
            label_dim=dataset.num_classes if conditional is None or conditional else 0,
            **network,
        ),
        preset=preset_name,
        **training,
    )
    if config.holdout >= len(dataset):
        raise ValueError(f"holdout={config.holdout} leaves none of the {len(dataset)} images of {data} to train on")
    return config


def _check_sides(data: str, height: int, width: int, halvings: int) -> None:
    """What everybody's own photos fail at first."""
    unit = 1 << halvings
    if height % unit or width % unit:
        near = max(unit, round(min(height, width) / unit) * unit)
        raise ValueError(
            f"{data}: its first image has {height}x{width} pixels, which cannot be halved {halvings} times, as this "
            f"network does; make all images alike with edm2 dataset convert {data} OUT.zip --resolution {near}"
        )


def _divided(settings: Mapping[str, Any]) -> tuple[Settings, Settings]:
    """(Those of the network, those of the training)."""
    fields = NetworkConfig.__dataclass_fields__
    network = {name: value for name, value in settings.items() if name in fields}
    return network, {name: value for name, value in settings.items() if name not in fields}


def _fitted(proposed: Settings, images: int, choices: Mapping[str, Any]) -> Settings:
    """A preset's settings, bent to whatever the user chose: few images held out of few, and whole batches."""
    fitted = proposed | {"holdout": min(proposed.get("holdout", 0), images // 10)}
    batch = choices.get("batch_size", 0)
    if batch > 0:  # what is not is refused later
        duration = proposed.get("duration", TrainingConfig.duration)
        fitted["duration"] = math.ceil(duration / batch) * batch
        if most := proposed.get("micro_batch"):
            fitted["micro_batch"] = next(n for n in range(min(most, batch), 0, -1) if batch % n == 0)
    return fitted


def describe_run(config: TrainingConfig, dataset: Dataset, processes: int = 1) -> Lines:
    """What a run of so many processes will be, as pairs of a subject and a phrase, before anything is written."""
    height, width = config.network.size
    parameters = count_parameters(config.network)
    return [
        ("data", f"{config.data}: {len(dataset):,} images{_held_out(config)}, {_classes(config, dataset)}"),
        *_scaling(config, dataset),
        ("preset", config.preset or "none"),
        ("network", f"config {config.network.config}, {parameters:,} parameters, {height}x{width}"),
        ("training", f"{config.duration:,} images in steps of {config.batch_size}{_visits(config, dataset)}"),
        ("learning rate", _schedule(config)),
        ("noise levels", _noise_levels(config)),
        ("weighting", _weighting(config)),
        ("device", _device(config, processes)),
        ("compute", _compute(config)),
        *_memory(config, processes),
        *_files(config),
    ]


def _files(config: TrainingConfig) -> Lines:
    """Snapshots, what averages of other lengths they are good for, and the disk that a run takes."""
    forecast = disk_forecast(config)
    times = len(forecast.kept_times)
    kept = f", kept of {len(forecast.all_times)}" if config.keep_snapshots else ""
    lengths = " and ".join(f"{s:g}" for s in config.sigma_rels)
    count, word = times * len(config.sigma_rels), "time" if times == 1 else "times"
    lines = [
        ("snapshots", f"{count} ({times} {word}{kept}, EMA lengths {lengths}), {config.snapshot_precision}"),
        ("any EMA", _reconstruction(config, forecast)),
        (
            "disk",
            f"about {_size(forecast.final)} in {config.out}, with the last {config.keep_checkpoints} checkpoints; "
            f"up to {_size(forecast.peak)} on the way",
        ),
    ]
    free, missing = free_space(config.out), forecast.peak - used_space(config.out)
    if free is not None and missing > free:
        lines.append(
            ("WARNING", f"{_size(missing)} more are to be written and {_size(free)} are free; {_room(config)}")
        )
    return lines


def _room(config: TrainingConfig) -> str:
    """How to need less disk."""
    halved = "" if config.snapshot_precision != "fp32" else " or --snapshot-precision bf16"
    return f"make room meanwhile, or try --keep-snapshots 64{halved}"


WANTED = (0.02, 0.03, 0.05, 0.075, 0.1, 0.13, 0.16, 0.2, 0.25)
"""EMA lengths for which the error of reconstruction is told before a run."""


def _reconstruction(config: TrainingConfig, forecast: DiskForecast) -> str:
    """The largest error of an EMA length that somebody may want at the end."""
    kept = _worst_error(forecast.kept_times, config.sigma_rels)
    if kept is None:
        return "no other lengths: reconstruction needs two snapshots or more"
    text = f"lengths {WANTED[0]:g} to {WANTED[-1]:g} at the end with errors up to {_percent(kept)}"
    if config.keep_snapshots is None:
        return text
    return f"{text}, {_percent(_worst_error(forecast.all_times, config.sigma_rels))} with all snapshots kept"


def _worst_error(times: list[int], stored: tuple[float, ...]) -> float | None:
    """Of averages of the wanted lengths, reconstructed from snapshots of these times; None: impossible."""
    every = -(-len(times) // MOST_SNAPSHOTS)
    times = times[::-every][::-1]  # more would be solved no better
    t, widths = np.meshgrid(times, stored)
    if t.size < 2:
        return None
    return reconstruction_error(t.ravel(), widths.ravel(), times[-1], WANTED).profile_error.max().item()


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _held_out(config: TrainingConfig) -> str:
    return f", {config.holdout:,} of them held out" if config.holdout else ""


def _classes(config: TrainingConfig, dataset: Dataset) -> str:
    if config.network.label_dim:
        dropped = f", {config.label_dropout:.0%} of labels dropped" if config.label_dropout else ""
        return f"{config.network.label_dim} classes{dropped}"
    return "labels not used" if dataset.num_classes else "no labels"


def _visits(config: TrainingConfig, dataset: Dataset) -> str:
    visits = config.duration / (len(dataset) - config.holdout)
    return f", each visited {visits:,.0f} times" if visits >= 1.5 else ""


def _scaling(config: TrainingConfig, dataset: Dataset) -> Lines:
    """What the network sees of the data."""
    sigma_data = config.network.sigma_data
    if dataset.kind == "moments":
        whose = "the dataset's" if dataset.latents else "the paper's"
        text = f"latents, drawn anew at every visit, scaled to standard deviation {sigma_data:g} by {whose} statistics"
        return [("scaling", text)]
    stats = dataset.pixel_stats
    if config.standardize:
        whose = "statistics stored in the dataset" if stats else "statistics measured when training starts"
        return [("scaling", f"pixels to mean 0 and standard deviation {sigma_data:g}, by {whose}")]
    preset = PRESETS.get(config.preset)
    as_in_paper = preset is not None and preset.training.get("standardize") is False
    lines = [("scaling", "pixels onto [-1, 1]" + (", as in the paper" if as_in_paper else ""))]
    if stats and abs(stats["sigma_data"] / sigma_data - 1) > FAR_OFF:
        lines.append(
            (
                "WARNING",
                f"the pixels' standard deviation is {stats['sigma_data']:.2f} on [-1, 1], but the network expects "
                f"{sigma_data:g}; --standardize scales them",
            )
        )
    return lines


def _schedule(config: TrainingConfig) -> str:
    text = f"{config.ref_lr:g}"
    if config.rampup_images:
        text += f", rising over {config.rampup_images:,} images"
    if config.ref_batches:
        text += f", falling after {int(config.ref_batches * config.batch_size):,}"
    return text


def _noise_levels(config: TrainingConfig) -> str:
    normal = f"ln sigma ~ N({config.P_mean:g}, {config.P_std:g}²)"
    text = normal if config.noise == "ln-normal" else f"those of {config.noise}"
    return f"{text}, one from each of {config.batch_size} strata in every step" if config.stratified_sigma else text


def _weighting(config: TrainingConfig) -> str:
    given = {"gamma": config.weighting_gamma, "k": config.weighting_k}
    words = [config.weighting, *(f"{name}={value:g}" for name, value in given.items() if value is not None)]
    if config.relative_weighting:
        words.append("on top of uncertainty")
    return " ".join(words)


def _compute(config: TrainingConfig) -> str:
    """A multiply-accumulate is one FLOP, as in the paper."""
    evaluation = count_flops(config.network)
    training = TRAINING_FLOPS * evaluation
    once, step, run = (with_unit(n, "FLOPs") for n in (evaluation, training, training * config.duration))
    return f"{once} to evaluate an image, {step} to train on it, {run} in all"


def _device(config: TrainingConfig, processes: int) -> str:
    several = f"{processes} x " if processes > 1 else ""
    images = min(config.images_per_forward, config.share(processes))
    return f"{several}{config.device}, {config.precision}, {images} images per forward pass"


def _memory(config: TrainingConfig, processes: int) -> Lines:
    memory = estimate_memory(config, processes)
    each = " in each process" if processes > 1 else ""
    phrase = (
        f"about {_size(memory.total)}{each}: {_size(memory.kept)} for weights, Adam and {config.num_averages} averages"
        f", {_size(memory.step)} for gradients and activations, allowance {_size(memory.spare)}"
    )
    lines = [("memory", phrase)]
    available = device_memory(config.device)
    if available and memory.total > available:
        fits = largest_micro_batch(config, available, processes)
        remedy = f"try --micro-batch {fits}" if fits else "choose a smaller network"
        lines.append(("WARNING", f"{config.device} has {_size(available)}; {remedy}"))
    return lines


def device_memory(device: str) -> int | None:
    """Bytes of memory of a device, None where that is not known."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not on Windows
        return None


def _size(num_bytes: float) -> str:
    return with_unit(num_bytes, "B")
