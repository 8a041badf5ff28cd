"""Training from the command line: the device, Ctrl-C, and the grids of samples that show a run move."""

import signal
from collections.abc import Callable, Iterable
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
from edm2.training.trainer import DTYPES

COLUMNS = 10


def default_device() -> str:
    """The fastest kind of device here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def progress_bar(description: str) -> Callable[[Iterable], Iterable]:
    """A tqdm bar that vanishes when it is done; none where nobody is at a terminal to see it."""
    return partial(tqdm, desc=description, leave=False, disable=None)


def run_training(config: TrainingConfig, dataset: Dataset) -> None:
    """Train; on the first Ctrl-C finish the step, write a checkpoint and leave with exit code 130."""
    trainer = Trainer(config, dataset, on_sample=partial(draw_samples, dtype=DTYPES[config.precision]))

    def stop(signum: int, frame: object) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True
        click.echo("\nFinishing this step, then writing a checkpoint; press Ctrl-C again to leave at once.", err=True)

    before = signal.signal(signal.SIGINT, stop)
    try:
        trainer.run()
    finally:
        signal.signal(signal.SIGINT, before)
    if trainer.images_seen < config.duration:
        click.echo(f"Stopped at {trainer.images_seen:,} images; run the same command again to go on.", err=True)
        raise click.exceptions.Exit(130)
    click.echo(f"Done: {trainer.images_seen:,} images, snapshots in {Path(config.out) / 'snapshots'}")


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
