"""Description of a run before it starts, for `edm2 train`: data, network, schedule, memory, snapshots, disk."""

from edm2.planning.costs import (
    count_flops,
    count_parameters,
    device_memory,
    disk_forecast,
    estimate_memory,
    evaluations_per_image,
    largest_micro_batch,
)
from edm2.planning.presets import PRESETS
from edm2.planning.probe import guessed_speed
from edm2.planning.relative import advice
from edm2.post_hoc_ema.planning import MOST_SNAPSHOTS, forecast_errors
from edm2.tools.reports.description import Lines
from edm2.training import Dataset, TrainingConfig
from edm2.training.data.dataset import evenly_spaced_indices
from edm2.training.data.own_codec import own_codec
from edm2.training.run.disk import DiskForecast, free_space, used_space
from edm2.training.run.speed import time_text, with_unit
from edm2.training.settings import ObjectiveConfig, ScheduleConfig

ENCODED = 32
"""Images whose spread is measured behind a codec of the user's own."""

FAR_OFF = 0.2
"""Relative difference between the data's standard deviation and the network's sigma_data that deserves a warning."""


def describe_plan(config: TrainingConfig, dataset: Dataset, processes: int = 1) -> Lines:
    """Describe a run of so many processes before it starts."""
    height, width = config.own_network.size
    parameters = count_parameters(config.network)
    held_out = f", {config.holdout:,} of them held out" if config.holdout else ""
    visits = config.duration / (len(dataset) - config.holdout)
    visited = f", each visited {visits:,.0f} times" if visits >= 1.5 else ""
    evaluation = count_flops(config.network)  # in the paper's unit: a multiply-accumulate is one
    training = evaluations_per_image(config) * evaluation
    costs = (evaluation, training, training * config.duration)
    once, step, run = (with_unit(flops, "FLOPs") for flops in costs)
    several = f"{processes} x " if processes > 1 else ""
    images = min(config.images_per_forward, config.images_per_rank(processes))
    return [
        ("data", f"{config.data}: {len(dataset):,} images{held_out}, {_classes(config, dataset)}"),
        *(("WARNING", note) for note in dataset.notes),
        *_scaling(config, dataset),
        *(("condition", f"{c.name}, {c}{_dropped(c.dropout)}") for c in config.own_network.conditions),
        ("preset", config.preset or "none"),
        ("network", f"config {config.own_network.config}, {parameters:,} parameters, {height}x{width}"),
        ("training", f"{config.duration:,} images in steps of {config.batch_size}{visited}"),
        ("learning rate", _schedule(config)),
        ("noise levels", _noise_levels(config)),
        ("weighting", _weighting(config)),
        ("device", f"{several}{config.device}, {config.precision}, {images} images per forward pass"),
        ("compute", f"{once} to evaluate an image, {step} to train on it, {run} in all"),
        *_memory(config, processes),
        *_files(config),
        *_time(config, processes),
        *(("WARNING", line) for line in advice(config, len(dataset))),
    ]


def _files(config: TrainingConfig) -> Lines:
    """Snapshots, the error of other EMA lengths made from them, and disk space."""
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
        halved = "" if config.snapshot_precision != "fp32" else " or --snapshot-precision bf16"
        remedy = f"make room meanwhile, or try --keep-snapshots 64{halved}"
        lines.append(("WARNING", f"{_size(missing)} more are to be written and {_size(free)} are free; {remedy}"))
    return lines


WANTED = (0.02, 0.03, 0.05, 0.075, 0.1, 0.13, 0.16, 0.2, 0.25)
"""EMA lengths whose largest error of reconstruction is shown before a run."""


def _reconstruction(config: TrainingConfig, forecast: DiskForecast) -> str:
    kept = _worst_error(forecast.kept_times, config.sigma_rels)
    if kept is None:
        return "no other lengths: reconstruction needs two snapshots or more"
    text = f"lengths {WANTED[0]:g} to {WANTED[-1]:g} at the end with errors up to {_percent(kept)}"
    if config.keep_snapshots is None:
        return text
    return f"{text}, {_percent(_worst_error(forecast.all_times, config.sigma_rels) or kept)} with all snapshots kept"


def _worst_error(times: list[int], stored: tuple[float, ...]) -> float | None:
    """Largest profile error of the wanted lengths at the end, from snapshots of these times; None: impossible."""
    every = -(-len(times) // MOST_SNAPSHOTS)
    times = times[::-every][::-1]  # more of them would not lower the error of the solution
    if len(times) * len(stored) < 2:
        return None
    return forecast_errors(times, WANTED, stored).profile_error.max().item()


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else "100 %"


def _time(config: TrainingConfig, processes: int) -> Lines:
    """Time of the run: what it was made for, or a guess."""
    if config.budget is not None:
        return [("time", f"{time_text(config.budget)}, as --budget says, by the speed that was measured when it began")]
    speed = guessed_speed(config, processes)
    guess = time_text(config.duration / speed)
    return [
        ("time", f"about {guess} on this machine, by a guess of {speed:,.3g} images/s; the first steps tell better")
    ]


def _classes(config: TrainingConfig, dataset: Dataset) -> str:
    if config.own_network.label_dim:
        dropped = f", {config.label_dropout:.0%} of labels dropped" if config.label_dropout else ""
        return f"{config.own_network.label_dim} classes{dropped}"
    return "labels not used" if dataset.num_classes else "no labels"


def _dropped(fraction: float) -> str:
    return f", dropped for {fraction:.0%} of images" if fraction else ""


def _scaling(config: TrainingConfig, dataset: Dataset) -> Lines:
    """Scaling of the data on their way into the network."""
    sigma_data = config.own_network.sigma_data
    if config.codec is not None:
        return _own_scaling(config.codec, dataset, sigma_data)
    if dataset.kind == "moments":
        whose = "the dataset's" if dataset.latents else "the paper's"
        text = f"latents, drawn anew at every visit, scaled to standard deviation {sigma_data:g} by {whose} statistics"
        return [("scaling", text)]
    if dataset.kind == "values":
        return [("scaling", f"values to mean 0 and standard deviation {sigma_data:g}, measured when training starts")]
    stats = dataset.pixel_stats
    if config.standardize:
        whose = "statistics stored in the dataset" if stats else "statistics measured when training starts"
        return [("scaling", f"pixels to mean 0 and standard deviation {sigma_data:g}, by {whose}")]
    preset = PRESETS.get(config.preset or "")
    as_in_paper = preset is not None and preset.training.get("standardize") is False
    lines = [("scaling", "pixels onto [-1, 1]" + (", as in the paper" if as_in_paper else ""))]
    if stats and abs(stats["sigma_data"] / sigma_data - 1) > FAR_OFF:
        deviation = f"the pixels' standard deviation is {stats['sigma_data']:.2f} on [-1, 1]"
        lines.append(("WARNING", f"{deviation}, but the network expects {sigma_data:g}; --standardize scales them"))
    return lines


def _own_scaling(codec: str, dataset: Dataset, sigma_data: float) -> Lines:
    """Mean and spread of some images behind a codec of the user's own, which the network expects to be as its own."""
    x = own_codec(codec).encode(dataset.images(evenly_spaced_indices(len(dataset), ENCODED)))
    mean, std = x.mean().item(), x.std().item()
    lines = [("scaling", f"by {codec}: mean {mean:.2f}, standard deviation {std:.2f} in {len(x)} images")]
    if abs(std / sigma_data - 1) > FAR_OFF or abs(mean) > FAR_OFF:
        lines.append(("WARNING", f"the network expects mean 0 and standard deviation {sigma_data:g} of {codec}"))
    return lines


def _schedule(config: ScheduleConfig) -> str:
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


def _weighting(config: ObjectiveConfig) -> str:
    given = {"gamma": config.weighting_gamma, "k": config.weighting_k}
    words = [config.weighting, *(f"{name}={value:g}" for name, value in given.items() if value is not None)]
    if config.relative_weighting:
        words.append("on top of uncertainty")
    return " ".join(words)


def _memory(config: TrainingConfig, processes: int) -> Lines:
    memory = estimate_memory(config, processes)
    each = " in each process" if processes > 1 else ""
    phrase = (
        f"about {_size(memory.total)}{each}: {_size(memory.persistent)} for weights, Adam and {config.num_averages} "
        f"averages, {_size(memory.step)} for gradients and activations, allowance {_size(memory.spare)}"
    )
    lines = [("memory", phrase)]
    available = device_memory(config.device)
    if available and memory.total > available:
        fits = largest_micro_batch(config, available, processes)
        remedy = f"try --micro-batch {fits}" if fits else "choose a smaller network"
        lines.append(("WARNING", f"{config.device} has {_size(available)}; {remedy}"))
    return lines


def _size(num_bytes: float) -> str:
    return with_unit(num_bytes, "B")
