"""Forecast of training on a cluster as text and as JSON, for `edm2 plan`."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edm2.planning.cluster import REACHED
from edm2.planning.costs import TRAINING_FLOPS, count_flops, count_parameters, disk_forecast
from edm2.planning.forecast import Forecast, TrainingVariant, stored_bytes
from edm2.post_hoc_ema import atomic_output
from edm2.tools.reports.description import Lines, print_lines
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
"""Reliability of each number."""


def print_forecast(forecast: Forecast) -> None:
    """Print the run, a table of the ways to train, data and disk, and the reliability of the numbers."""
    print_lines(_about(forecast))
    click.echo()
    _print_table(
        forecast.variants, [*_options(), None, *_memory_rows(), None, *_traffic_rows(), None, *_speed_rows(forecast)]
    )
    click.echo()
    print_lines([*_data(forecast), *_disk(forecast)])
    click.echo("\nHow sure is this? (docs/plan.md)")
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


# ----------------------------------------------------------------------------------------------------------- the table

TableRow = tuple[str, Callable[[TrainingVariant], str]]
"""A subject, and the function that writes its cell for a variant."""


def _print_table(variants: list[TrainingVariant], rows: Iterable[TableRow | None]) -> None:
    """Print a column per variant; None is an empty line."""
    for row in rows:
        if row is None:
            click.echo()
            continue
        subject, phrase = row
        click.echo((f"{subject:<40}" + "".join(f"{phrase(variant):>10}" for variant in variants)).rstrip())


def _options() -> list[TableRow]:
    return [
        ("edm2 train --shard", lambda variant: _yes(variant.config.shard)),
        ("edm2 train --recompute", lambda variant: _yes(variant.config.recompute)),
    ]


def _memory_rows() -> list[TableRow]:
    def part(field: str) -> Callable[[TrainingVariant], str]:
        return lambda variant: _giga(getattr(variant.memory, field))

    return [
        ("largest --micro-batch that fits", lambda v: str(v.largest or "none")),
        ("micro-batch x rounds per step", lambda v: f"{v.images} x {v.rounds}"),
        ("fits", lambda v: _yes(v.fits)),
        *((f"GB per GPU: {words}", part(field)) for field, words in PARTS.items()),
        ("GB per GPU", lambda v: _giga(v.memory.total)),
        ("GB of host memory per machine to save", lambda v: _giga(v.checkpoint_copies)),
    ]


def _traffic_rows() -> list[TableRow]:
    return [
        ("GB sent per GPU and step: gradients", lambda v: _giga(v.traffic.all_reduce + v.traffic.reduce_scatter)),
        ("GB sent per GPU and step: weights", lambda v: _giga(v.traffic.all_gather)),
        ("seconds per step for that", lambda v: f"{v.communicating:.2g}"),
    ]


def _speed_rows(forecast: Forecast) -> list[TableRow | None]:
    rows: list[TableRow | None] = []
    for source, seconds in forecast.seconds_per_image.items():

        def cell(phrase: Callable[..., str], seconds: float = seconds) -> Callable[[TrainingVariant], str]:
            return lambda variant: phrase(variant.speed(seconds))

        rows += [
            (f"{source}:", lambda variant: ""),
            ("  seconds per step: computing", cell(lambda speed: f"{speed.computing:.3g}")),
            ("  seconds per step: waiting", cell(lambda speed: f"{speed.waiting:.2g}")),
            ("  images/s", cell(lambda speed: f"{speed.images_per_second:,.0f}")),
            ("  days", cell(lambda speed: f"{forecast.days(speed):.3g}")),
            ("  GPU-hours", cell(lambda speed: f"{forecast.gpu_hours(speed):,.0f}")),
        ]
    return rows


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _giga(value: float) -> str:
    return f"{value / 1e9:.2f}"


# ------------------------------------------------------------------------------------------------------ data and disk


def _data(forecast: Forecast) -> Lines:
    """Rate at which storage and workers have to deliver images, at the highest speed of the table."""
    size, speed = stored_bytes(forecast.dataset), forecast.fastest.images_per_second
    kind = "latents" if forecast.dataset.kind == "moments" else "pixels before compression"
    per_node = with_unit(size * speed / forecast.cluster.nodes, "B/s")
    visits = forecast.config.duration / len(forecast.dataset)
    return [
        ("data", f"up to {speed:,.0f} images/s of {with_unit(size, 'B')} ({kind}): {with_unit(size * speed, 'B/s')}, "
                 f"{per_node} per machine"),
        ("dataset", f"{len(forecast.dataset):,} images, {with_unit(size * len(forecast.dataset), 'B')}, each visited "
                    f"{visits:,.0f} times"),
    ]  # fmt: skip


def _disk(forecast: Forecast) -> Lines:
    config, disk = forecast.config, disk_forecast(forecast.config)
    final, peak, checkpoint = (with_unit(size, "B") for size in (disk.final, disk.peak, disk.sizes.checkpoint))
    return [
        ("disk", f"{final}: snapshots of {len(disk.kept_times)} times in {config.snapshot_precision}, "
                 f"{config.keep_checkpoints} checkpoints of {checkpoint}; up to {peak} on the way"),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------- for programs


def write_forecast(forecast: Forecast, path: Path) -> None:
    """Write the forecast as JSON, in bytes, seconds and images."""
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(forecast_to_json(forecast), indent=1) + "\n", encoding="utf-8")


def forecast_to_json(forecast: Forecast) -> dict[str, Any]:
    """Forecast as plain values for JSON."""
    config, cluster, disk = forecast.config, forecast.cluster, disk_forecast(forecast.config)
    return {
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


def _variant_to_json(forecast: Forecast, variant: TrainingVariant) -> dict[str, Any]:
    speeds = {source: variant.speed(seconds) for source, seconds in forecast.seconds_per_image.items()}
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
        "speeds": {
            source: {
                "seconds_computing": speed.computing,
                "seconds_waiting": speed.waiting,
                "images_per_second": speed.images_per_second,
                "days": forecast.days(speed),
                "gpu_hours": forecast.gpu_hours(speed),
            }
            for source, speed in speeds.items()
        },
    }
