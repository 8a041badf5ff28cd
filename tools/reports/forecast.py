"""Forecast of training on a cluster as text and as JSON, for `edm2 plan`."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edm2.planning.cluster import REACHED
from edm2.planning.costs import TRAINING_FLOPS, count_flops, count_parameters, disk_forecast
from edm2.planning.forecast import Forecast, TrainingVariant, stored_bytes
from edm2.tools.reports.description import Lines, print_lines
from edm2.training.run.files import write_json
from edm2.training.run.speed import with_unit

PARTS = {
    "weights": "weights",
    "adam": "Adam's two moments",
    "averages": "averages",
    "gradients": "gradients",
    "activations": "activations",
    "borrowed": "blocks on their way",
    "spare": "allowance",
}
"""Fields of a memory estimate, and their names in the table."""

HOW_SURE = (
    ("memory", "tensors are counted; on CPUs they took 2 % more to 11 % less. The allowance is a guess"),
    ("sent", f"counted, and what real processes send. Seconds: {REACHED:.0%} of data sheets, hidden behind computing"),
    ("speed", "published: of other software on A100, widths 128 to 448, scaled by one number. Better: --efficiency"),
    ("days", "of training alone: no failures, no saving, no waiting for data"),
    ("disk", "counted, to the percent"),
)  # fmt: skip


def print_forecast(forecast: Forecast) -> None:
    """Print the run, a table of the ways to train, data and disk, and the reliability of the numbers."""
    print_lines(_about(forecast))
    click.echo()
    _print_table(forecast)
    click.echo()
    print_lines(_data_and_disk(forecast))
    click.echo("\nHow sure is this? (edm2 docs plan)")
    for subject, phrase in HOW_SURE:
        click.echo(f"  {subject + ':':<13}{phrase}")


def _about(forecast: Forecast) -> Lines:
    config, cluster = forecast.config, forecast.cluster
    gpu, network = cluster.gpu, config.own_network
    flops = count_flops(network)
    channels = f"{network.img_channels}x{network.size[0]}x{network.size[1]}"
    links = [f"{gpu.link:g} GB/s within a machine"] * (cluster.per_node > 1)
    links += [f"{8 * gpu.network:g} Gbit/s between machines"] * (cluster.nodes > 1)
    return [
        ("run", f"{config.preset}, config {network.config}, images of {channels}, {network.label_dim} classes"),
        ("network", f"{count_parameters(network):,} parameters, {with_unit(flops, 'FLOPs')} to evaluate an image"),
        ("training", f"{config.duration:,} images in {config.duration // config.batch_size:,} steps of "
                     f"{config.batch_size:,}, {config.batch_size // cluster.gpus} per GPU; "
                     f"{with_unit(TRAINING_FLOPS * flops * config.duration, 'FLOPs')} in all"),
        ("GPUs", f"{cluster.gpus} x {gpu.name} ({gpu.memory:g} GB, {gpu.peak:g} TFLOP/s in bf16), {cluster.per_node} "
                 f"per machine"),
        *[("links", ", ".join(links))] * bool(links),
    ]  # fmt: skip


def _print_table(forecast: Forecast) -> None:
    """Print a column per way to train."""
    ways = forecast.variants

    def row(subject: str, cells: Iterable[str]) -> None:
        click.echo((f"{subject:<40}" + "".join(f"{cell:>10}" for cell in cells)).rstrip())

    def gigabytes(subject: str, values: Iterable[float]) -> None:
        row(subject, (f"{value / 1e9:.2f}" for value in values))

    row("edm2 train --shard", (_yes(way.config.shard) for way in ways))
    row("edm2 train --recompute", (_yes(way.config.recompute) for way in ways))
    click.echo()
    row("largest --micro-batch that fits", (str(way.largest or "none") for way in ways))
    row("micro-batch x rounds per step", (f"{way.images} x {way.rounds}" for way in ways))
    row("fits", (_yes(way.fits) for way in ways))
    for field, words in PARTS.items():
        gigabytes(f"GB per GPU: {words}", (getattr(way.memory, field) for way in ways))
    gigabytes("GB per GPU", (way.memory.total for way in ways))
    gigabytes("GB of host memory per machine to save", (way.checkpoint_copies for way in ways))
    click.echo()
    gigabytes("GB sent per GPU and step: gradients", (w.traffic.all_reduce + w.traffic.reduce_scatter for w in ways))
    gigabytes("GB sent per GPU and step: weights", (way.traffic.all_gather for way in ways))
    row("seconds per step for that", (f"{way.communicating:.2g}" for way in ways))
    click.echo()
    for source, seconds in forecast.seconds_per_image.items():
        speeds = [way.speed(seconds) for way in ways]
        row(f"{source}:", ())
        row("  seconds per step: computing", (f"{speed.seconds_computing:.3g}" for speed in speeds))
        row("  seconds per step: waiting", (f"{speed.seconds_waiting:.2g}" for speed in speeds))
        row("  images/s", (f"{speed.images_per_second:,.0f}" for speed in speeds))
        row("  days", (f"{speed.days:.3g}" for speed in speeds))
        row("  GPU-hours", (f"{speed.gpu_hours:,.0f}" for speed in speeds))


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _data_and_disk(forecast: Forecast) -> Lines:
    """Rate at which storage and workers have to deliver images at the highest speed of the table, and files."""
    config, count, disk = forecast.config, len(forecast.dataset), disk_forecast(forecast.config)
    size, speed = stored_bytes(forecast.dataset), forecast.fastest.images_per_second
    kind = "latents" if forecast.dataset.kind == "moments" else "pixels before compression"
    per_node = with_unit(size * speed / forecast.cluster.nodes, "B/s")
    final, peak, checkpoint = (with_unit(size, "B") for size in (disk.final, disk.peak, disk.sizes.checkpoint))
    return [
        ("data", f"up to {speed:,.0f} images/s of {with_unit(size, 'B')} ({kind}): {with_unit(size * speed, 'B/s')}, "
                 f"{per_node} per machine"),
        ("dataset", f"{count:,} images, {with_unit(size * count, 'B')}, each visited {config.duration / count:,.0f} "
                    "times"),
        ("disk", f"{final}: snapshots of {len(disk.kept_times)} times in {config.snapshot_precision}, "
                 f"{config.keep_checkpoints} checkpoints of {checkpoint}; up to {peak} on the way"),
    ]  # fmt: skip


def write_forecast(forecast: Forecast, path: Path) -> None:
    """Write the forecast as JSON, in bytes, seconds and images."""
    config, cluster, disk = forecast.config, forecast.cluster, disk_forecast(forecast.config)
    values = {
        "config": config.to_json(),
        "gpu": asdict(cluster.gpu),
        "gpus": cluster.gpus,
        "per_node": cluster.per_node,
        "parameters": count_parameters(config.network),
        "flops_per_evaluation": count_flops(config.network),
        "stored_bytes_per_image": stored_bytes(forecast.dataset),
        "disk": {"final": disk.final, "peak": disk.peak},
        "variants": [_variant_to_json(forecast, variant) for variant in forecast.variants],
        "how_sure": dict(HOW_SURE),
    }
    write_json(path, values)


def _variant_to_json(forecast: Forecast, variant: TrainingVariant) -> dict[str, Any]:
    return {
        "shard": variant.config.shard,
        "recompute": variant.config.recompute,
        "largest_micro_batch": variant.largest,
        "micro_batch": variant.images,
        "rounds": variant.rounds,
        "fits": variant.fits,
        "memory": asdict(variant.memory) | {"total": variant.memory.total},
        "host_memory_per_machine": variant.checkpoint_copies,
        "sent": asdict(variant.traffic) | {"total": variant.traffic.total, "seconds": variant.communicating},
        "speeds": {source: asdict(variant.speed(s)) for source, s in forecast.seconds_per_image.items()},
    }
