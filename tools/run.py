"""Training from the command line: the device, Ctrl-C, and the grids of samples that show a run move."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import torch
from tqdm import tqdm

from edm2.generation import generate
from edm2.images import save_grid
from edm2.networks import Precond, fold
from edm2.training import Codec, Dataset, Trainer, TrainingConfig
from edm2.training.latents import VAEError
from edm2.training.speed import time_text
from edm2.training.trainer import DTYPES, SnapshotHook

COLUMNS = 10


def default_device() -> str:
    """The fastest kind of device here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def progress_bar(description: str) -> Callable[[Iterable], Iterable]:
    """A tqdm bar that vanishes when it is done; none where nobody is at a terminal to see it."""
    return partial(tqdm, desc=description, leave=False, disable=None)


def image_bar(total: int, hidden: bool = False) -> tqdm:
    """A bar that counts images and vanishes when it is done; none where nobody is at a terminal, or if `hidden`."""
    return tqdm(total=total, unit="img", leave=False, disable=True if hidden else None, dynamic_ncols=True)


def run_training(config: TrainingConfig, dataset: Dataset, on_snapshot: SnapshotHook | None = None) -> None:
    """Train as `train_interruptibly` does, and say where the snapshots are."""
    trainer = train_interruptibly(config, dataset, on_snapshot)
    click.echo(f"Done: {trainer.images_seen:,} images, snapshots in {Path(config.out) / 'snapshots'}")


def train_interruptibly(config: TrainingConfig, dataset: Dataset, on_snapshot: SnapshotHook | None = None) -> Trainer:
    """Train; on the first Ctrl-C finish the step, write a checkpoint and leave with exit code 130.

    `on_snapshot` is the trainer's.
    """
    draw = partial(draw_samples, dtype=DTYPES[config.precision])
    trainer = Trainer(config, dataset, on_sample=draw, on_speed=tell_speed, on_snapshot=on_snapshot)

    def stop(signum: int, frame: object) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True
        click.echo("\nFinishing this step, then writing a checkpoint; press Ctrl-C again to leave at once.", err=True)

    before = signal.signal(signal.SIGINT, stop)
    try:
        with memory_advice(config):
            trainer.run()
    finally:
        signal.signal(signal.SIGINT, before)
    if trainer.images_seen < config.duration:
        click.echo(f"Stopped at {trainer.images_seen:,} images; run the same command again to go on.", err=True)
        raise click.exceptions.Exit(130)
    return trainer


def tell_speed(images_per_second: float, images_left: int) -> None:
    """One line in the middle of a run, above the bar if there is one."""
    left = time_text(images_left / images_per_second)
    tqdm.write(f"speed: {images_per_second:,.3g} images/s; the remaining {images_left:,} images will take about {left}")


def measure_run(config: TrainingConfig, dataset: Dataset) -> list[tuple[str, str]]:
    """Speed, time and memory of a run, from some of its steps; nothing is written."""
    with memory_advice(config):
        speed, peak_memory = Trainer(config, dataset).measure()
    return [
        ("speed", f"{speed:,.3g} images/s"),
        ("time", f"about {time_text(config.duration / speed)} for {config.duration:,} images, pauses not counted"),
        ("peak memory", f"{peak_memory / 1e9:.3g} GB"),
    ]


@contextmanager
def memory_advice(config: TrainingConfig) -> Iterator[None]:
    """Say what to do when the device's memory runs out."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise click.ClickException(
            f"{config.device} has too little memory for {config.images_per_forward} images per forward pass; "
            "lower --micro-batch"
        ) from None


def draw_samples(
    net: Precond, codec: Codec, path: Path, dtype: torch.dtype = torch.float32, rows: int = 4, num_steps: int = 18
) -> None:
    """Write a grid of samples with one class per column (at most ten); the same seeds every time.

    Args:
        net: Denoiser to sample from.
        codec: Turns samples into pixels.
        path: PNG file.
        dtype: Of the activations.
        rows: Images per column.
        num_steps: Sampling steps.
    """
    columns = min(net.config.label_dim, COLUMNS) or COLUMNS
    count = rows * columns
    classes = [i % columns for i in range(count)] if net.config.label_dim else None
    batches = generate(fold(net, dtype), range(count), classes, batch_size=count, num_steps=num_steps)
    samples = torch.cat([batch.samples for batch in batches])
    try:
        pixels = codec.to_display(codec.decode(samples))
    except VAEError as error:  # a run that lasts days must not end over a picture
        click.echo(f"No samples drawn: {error}", err=True)
        return
    save_grid(pixels, path, columns)
