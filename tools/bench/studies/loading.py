"""Opening a large latent dataset, and reading it while a GPU trains: `python -m edm2.tools.bench.studies.loading`.

The large dataset has as many entries as ImageNet has images, in a sparse file: only the members that are read take
room. The one to train on is of real files, thrown out of the system's memory first, so that the disk has to give them.
In place of a GPU the training loop sleeps for as long as a step takes.
"""

import io
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile, sizeFileHeader  # type: ignore[attr-defined]  # undocumented: 30, as the format says

import click
import numpy as np
import torch

from edm2.datasets.parts import member
from edm2.tools.bench.studies.common import in_new_process
from edm2.training import open_dataset
from edm2.training.data.loader import data_loader
from edm2.training.data.order import PositionBatches, ShuffledOrder

SHAPE = (8, 64, 64)
"""Moments of a 512x512 image: mean and standard deviation of four channels."""

SPARSE = 1024
"""One in so many members of the sparse dataset is really there."""


@click.command()
@click.option("--entries", default=1_281_167, show_default=True, help="Images of the large dataset; 0: leave it out.")
@click.option("--images", default=8192, show_default=True, help="Images of the one to train on.")
@click.option("--batch", default=256, show_default=True, help="Images per step.")
@click.option("--rate", default=600.0, show_default=True, help="Images per second that the GPU can train on.")
@click.option("--steps", default=40, show_default=True, help="Steps to measure.")
def main(entries: int, images: int, batch: int, rate: float, steps: int) -> None:
    """Measure how long a dataset takes to open, and how long training waits for it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if entries:
            measure_opening(Path(folder, "large.zip"), entries, batch)
        for dtype in ("float32", "float16"):
            path = Path(folder, f"{dtype}.zip")
            write_latents(path, images, dtype)
            measure_waiting(path, dtype, batch, batch / rate, steps)


def measure_opening(path: Path, entries: int, batch: int) -> None:
    """Print times and memory of the first openings, and of workers' first batches."""
    seconds = _seconds(lambda: write_sparse_latents(path, entries))
    click.echo(f"{entries:,} entries, {path.stat().st_size / 1e9:.0f} GB, written in {seconds:.0f} s")
    for attempt in ("first", "second", "third"):
        seconds, memory = in_new_process(open_it, path)
        click.echo(f"opened for the {attempt} time in {seconds:.2f} s, {memory / 1e6:.0f} MB more memory")
    for method in ("fork", "spawn"):
        seconds, _ = in_new_process(read_first_batch, path, batch, method)
        click.echo(f"opened and the first batch of a worker, started by {method}, there in {seconds:.2f} s")


def open_it(path: Path) -> None:
    """Do what happens first in a training run."""
    open_dataset(path)


def read_first_batch(path: Path, batch: int, method: str) -> None:
    """Do what happens next: a worker is started, and reads."""
    torch.multiprocessing.set_start_method(method, force=True)
    dataset = open_dataset(path)
    next(data_loader(dataset, [list(range(0, len(dataset), SPARSE))[:batch]], workers=1))


def measure_waiting(path: Path, dtype: str, batch: int, step: float, steps: int) -> None:
    """Print how fast images can be read, and the fraction of its time that a training loop waits for them."""
    for workers in (1, 2):
        rate = batch * steps / waited(path, batch, workers, steps, step=0)
        click.echo(f"{dtype}: {workers} workers read {rate:,.0f} images per second at full speed")
    for workers in (1, 2):
        seconds = waited(path, batch, workers, steps, step)
        click.echo(
            f"{dtype}: steps of {1e3 * step:.0f} ms for {batch} images, {workers} workers: {1e3 * seconds / steps:.2f} "
            f"ms waited per step, {100 * seconds / (seconds + steps * step):.2f} % of the time"
        )


def waited(path: Path, batch: int, workers: int, steps: int, step: float) -> float:
    """Seconds that steps of training wait for their images; the first step, in which workers start, left out."""
    with open(path, "rb") as file:  # make the system read the file from disk again
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    dataset = open_dataset(path)
    batches = data_loader(dataset, PositionBatches(ShuffledOrder(len(dataset), seed=0), 0, batch), workers)
    next(batches)
    seconds = 0.0
    for _ in range(steps):
        time.sleep(step)
        seconds += _seconds(lambda: next(batches))
    return seconds


def write_latents(path: Path, images: int, dtype: str) -> None:
    """Write random moments."""
    random = np.random.default_rng(0)
    with ZipFile(path, "w") as archive:
        for i in range(images):
            archive.writestr(member(_name(i)), _to_npy(random.random(SHAPE, dtype=np.float32).astype(dtype)))
        archive.writestr(member("dataset.json"), _labels(images))


def write_sparse_latents(path: Path, entries: int) -> None:
    """Write a dataset with as many classes as ImageNet; all but every `SPARSE`-th member are holes in the file."""
    contents = _to_npy(np.ones(SHAPE, dtype=np.float32))
    checksum = zlib.crc32(contents)
    with ZipFile(path, "w") as archive:
        for i in range(entries):
            info = member(_name(i))
            if i % SPARSE == 0:
                archive.writestr(info, contents)
                continue
            info.header_offset, info.CRC = archive.start_dir, checksum
            info.file_size = info.compress_size = len(contents)
            archive.filelist.append(info)
            archive.start_dir += sizeFileHeader + len(info.filename) + len(contents)  # where the next member goes
        archive.writestr(member("dataset.json"), _labels(entries))


def _labels(count: int) -> str:
    return json.dumps({"labels": [[_name(i), i % 1000] for i in range(count)]})


def _name(number: int) -> str:
    return f"{number:08}"[:5] + f"/img-mean-std-{number:08}.npy"


def _to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
