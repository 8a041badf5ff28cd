"""Opening a large latent dataset, and reading it while a GPU trains: `python -m edm2.tools.bench.studies.loading`.

The large dataset is as many entries as ImageNet has images, in a sparse file: only the members that are read take room.
The one to train on is of real files, thrown out of the system's memory first, so that the disk has to give them. In
place of a GPU the training loop sleeps for as long as a step takes.
"""

import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from zipfile import ZipFile, sizeFileHeader  # type: ignore[attr-defined]  # undocumented: 30, as the format says

import click
import numpy as np
import torch

from edm2.datasets.parts import member
from edm2.post_hoc_ema import atomic_output
from edm2.training import Dataset, open_dataset
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
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; default: the folder for such things.")
def main(entries: int, images: int, batch: int, rate: float, steps: int, folder: Path | None) -> None:
    """Measure how long a dataset takes to open, and how long training waits for it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if entries:
            measure_opening(Path(place) / "large.zip", entries, batch)
        for dtype in (np.float32, np.float16):
            measure_waiting(Path(place) / f"{dtype.__name__}.zip", images, dtype, batch, batch / rate, steps)


# ----------------------------------------------------------------------------------------------------------------------
# Opening


def measure_opening(path: Path, entries: int, batch: int) -> None:
    """Print times and memory of the first and the second opening, and of workers' first batches."""
    seconds = _seconds(lambda: write_sparse_latents(path, entries))
    click.echo(f"{entries:,} entries, {path.stat().st_size / 1e9:.0f} GB, written in {seconds:.0f} s")
    for attempt in ("first", "second", "third"):
        seconds, memory = _in_new_process(open_it, path)
        click.echo(f"opened for the {attempt} time in {seconds:.2f} s, {memory:.0f} MB more memory")
    for method in ("fork", "spawn"):
        seconds, _ = _in_new_process(read_first_batch, path, batch, method)
        click.echo(f"opened and the first batch of a worker, started by {method}, there in {seconds:.2f} s")


def write_sparse_latents(path: Path, entries: int) -> None:
    """A latent dataset with as many classes as ImageNet; all but every `SPARSE`-th member are holes in the file."""
    contents = _to_npy(np.ones(SHAPE, dtype=np.float32))
    names = [_moments_name(i) for i in range(entries)]
    labels = json.dumps({"labels": [[name, i % 1000] for i, name in enumerate(names)]}).encode()
    checksum = zlib.crc32(contents)
    with ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            info = member(name)
            if i % SPARSE == 0:
                archive.writestr(info, contents)
                continue
            info.header_offset, info.CRC = archive.start_dir, checksum
            info.file_size = info.compress_size = len(contents)
            archive.filelist.append(info)
            archive.start_dir += sizeFileHeader + len(name) + len(contents)  # where the next member goes
        archive.writestr(member("dataset.json"), labels)


def open_it(path: Path) -> None:
    """What happens first in a training run."""
    open_dataset(path)


def read_first_batch(path: Path, batch: int, method: str) -> None:
    """What happens next: a worker is started, and reads."""
    torch.multiprocessing.set_start_method(method, force=True)
    dataset = open_dataset(path)
    next(data_loader(dataset, [list(range(0, len(dataset), SPARSE))[:batch]], workers=1))


def _in_new_process(work: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """Seconds that it takes, and megabytes by which the most memory ever used grows; that of workers left out."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_measure_here, args=(sending, work, *arguments))
    process.start()
    result = receiving.recv()
    process.join()
    return result


def _measure_here(sending: Connection, work: Callable[..., None], *arguments: object) -> None:
    before = _most_memory()
    seconds = _seconds(lambda: work(*arguments))
    sending.send((seconds, _most_memory() - before))


def _most_memory() -> float:
    """Megabytes. A new process on Linux takes its parent's record over, but for one account."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ----------------------------------------------------------------------------------------------------------------------
# Waiting


def measure_waiting(path: Path, images: int, dtype: type[np.generic], batch: int, step: float, steps: int) -> None:
    """Print how fast images can be read, and which share of its time a training loop waits for them."""
    write_latents(path, images, dtype)
    dataset = open_dataset(path)
    for workers in (1, 2):
        _forget(path)
        rate = batch * steps / sum(waits(dataset, batch, workers, steps, step=0))
        click.echo(f"{np.dtype(dtype)}: {workers} workers read {rate:,.0f} images per second at full speed")
    for workers in (1, 2):
        _forget(path)
        waited = sum(waits(dataset, batch, workers, steps, step))
        share = waited / (waited + steps * step)
        click.echo(
            f"{np.dtype(dtype)}: steps of {1e3 * step:.0f} ms for {batch} images, {workers} workers: "
            f"{1e3 * waited / steps:.2f} ms waited per step, {100 * share:.2f} % of the time"
        )


def waits(dataset: Dataset, batch: int, workers: int, steps: int, step: float) -> list[float]:
    """Seconds that each step of training waits for its images; the first one, in which workers start, left out."""
    places = PositionBatches(ShuffledOrder(len(dataset), seed=0), 0, batch)
    batches = data_loader(dataset, places, workers)
    next(batches)
    waited = []
    for _ in range(steps):
        time.sleep(step)
        waited.append(_seconds(lambda: next(batches)))
    return waited


def write_latents(path: Path, images: int, dtype: type[np.generic]) -> None:
    """Random moments."""
    random = np.random.default_rng(0)
    with atomic_output(path) as temporary, ZipFile(temporary, "w") as archive:
        for i in range(images):
            archive.writestr(member(_moments_name(i)), _to_npy(random.random(SHAPE, dtype=np.float32).astype(dtype)))
        labels = {"labels": [[_moments_name(i), i % 1000] for i in range(images)]}
        archive.writestr(member("dataset.json"), json.dumps(labels))


def _forget(path: Path) -> None:
    """Make the system read the file from disk again."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _moments_name(number: int) -> str:
    return f"{number:08}"[:5] + f"/img-mean-std-{number:08}.npy"


def _to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
