"""Images to latents: the moments that a VAE's encoder gives for each image, in a ZIP to train on.

    encode("images-512.zip", "latents.zip", MomentEncoder(device=torch.device("cuda")))

The work is divided into parts (see `edm2.datasets.parts`), and the parts among the processes of a torchrun job. In each
process threads read images ahead and write parts, so the VAE never waits for a disk. A part holds whole batches, so it
does not matter which process encodes it. The statistics of the latents, which training needs, are added up on the way.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import PIL
import torch
from torch import Tensor

from edm2.datasets.measuring import Statistics, Sums, sums_of_moments, total_of
from edm2.datasets.moments import MomentEncoder
from edm2.datasets.parts import (
    ConditionFiles,
    Part,
    ahead,
    check_new_zip,
    conditions_to_carry,
    divide,
    evenly_from_classes,
    known_of_conditions,
    labels_to_json,
    make_missing,
    member,
    numbered,
    stamps_with_conditions,
    string_together,
    write_conditions,
    writing_to,
)
from edm2.post_hoc_ema import atomic_output
from edm2.training import DatasetError, LatentCodec
from edm2.training.data.archive.catalog import Catalog, open_files
from edm2.training.data.archive.files import Files
from edm2.training.data.archive.index import open_archive
from edm2.training.data.dataset import ArchiveDataset
from edm2.training.distributed.processes import Processes

__all__ = ["Encoded", "encode"]

PART_SIZE = 64
"""Images per part; one batch if that is more."""

PART_VERSION = 2
"""Version of the bytes of a part; parts of other versions are not used."""

READ_AHEAD = 4
"""Batches to read ahead while one is encoded."""


@dataclass(frozen=True)
class Encoded:
    """Result of an encoding."""

    images: int
    """Number of images in the result."""
    shape: tuple[int, int, int]
    """Shape of the moments of an image: 2 C, H, W."""
    statistics: Statistics
    """Measured on all latents, in the VAE's unit."""
    latents: dict[str, Any]
    """Entry "latents" of dataset.json."""


def encode(
    source: str | Path,
    out: str | Path,
    encoder: MomentEncoder,
    batch_size: int = 8,
    max_images: int | None = None,
    workers: int = 4,
    paper_statistics: bool = False,
    processes: Processes | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Encoded | None:
    """Write the moments of the images in `source` to the ZIP file `out`, with their labels and their statistics.

    The bytes depend on the images, the VAE, the settings and the kind of device, not on the number of processes or on
    interruptions: the same call, with any number of processes, uses all finished parts. Needs twice the space of `out`
    while it runs.

    Args:
        source: Folder or ZIP of images of one size. Grays become RGB, transparency is dropped.
        out: ZIP file to write; must not exist.
        encoder: Makes moments of pixels.
        batch_size: Images that the VAE encodes at a time.
        max_images: Number of images to take, the first of each class and as many of each as there are; default: all.
        workers: Threads that read images, in each process.
        paper_statistics: Store the paper's mean and standard deviation for the trainer instead of the measured ones, as
            networks trained elsewhere expect. Only for the paper's VAE and range of pixels.
        processes: Processes of the job, all of which make this call; default: this one alone.
        report: Called with the number of this process's images that are done, and of all that are its own, as the work
            goes on.

    Returns:
        The result; None in all processes but the first.

    Raises:
        DatasetError: The source cannot be used, an image cannot be read, or its moments are no numbers.
        ValueError: `out` does not end in .zip, the images do not fit the VAE, or `max_images` is below 1.
        VAEError: The VAE cannot be loaded.
        FileExistsError: `out` exists.
        OSError: `out` cannot be written, for instance because the disk is full.
    """
    out, processes = Path(out), processes or Processes()
    check_new_zip(out)
    _check_statistics(encoder, paper_statistics)
    files, catalog = open_archive(Path(source))
    chosen = evenly_from_classes(catalog.labels, max_images)
    names = [catalog.names[index] for index in chosen]
    dataset = ArchiveDataset(files, replace(catalog, names=names, labels=catalog.labels[chosen]))
    if dataset.kind != "pixels":
        raise DatasetError(f"{source}: holds moments already; train on it as it is")
    encoder.check(*dataset.shape[1:])
    conditions = conditions_to_carry(files, catalog, names)
    job = _Job(files, catalog, dataset, encoder, batch_size, workers, conditions)
    # The batch's size is among what decides the bytes of a part: sums in a VAE depend on it.
    settings = [PART_VERSION, PIL.__version__, encoder.identity(), batch_size]
    stamps = stamps_with_conditions(files, names, conditions)
    parts = divide(out, names, stamps, batch_size * max(1, PART_SIZE // batch_size), settings)
    with writing_to(out):
        make_missing(processes.shard(parts), partial(_made, job), report)
        processes.wait()
        encoded = _finish(job, parts, out, paper_statistics) if processes.is_first else None
        processes.wait()
    return encoded


def _check_statistics(encoder: MomentEncoder, paper_statistics: bool) -> None:
    paper = LatentCodec()
    if paper_statistics and (encoder.vae, encoder.pixel_range) != (paper.vae, paper.pixel_range):
        raise ValueError(
            f"the paper's statistics belong to {paper.vae} with pixels from 0 to 1, not to {encoder.vae} with "
            f"{encoder.pixel_range}; leave --paper-stats out to store the measured ones"
        )


# ----------------------------------------------------------------------------------------------------------------------
# Parts


@dataclass(frozen=True)
class _Job:
    """Images and settings."""

    files: Files
    catalog: Catalog
    dataset: ArchiveDataset
    encoder: MomentEncoder
    batch_size: int
    workers: int
    conditions: ConditionFiles


def _made(job: _Job, parts: Sequence[Part]) -> Iterator[Part]:
    """Make parts and yield each when it is written."""
    with ThreadPoolExecutor(job.workers) as readers, ThreadPoolExecutor(1) as writer:
        encoded = _encoded(job, parts, readers)
        yield from ahead(writer, (partial(_write_part, job, part, moments) for part, moments in encoded), depth=1)


def _encoded(job: _Job, parts: Sequence[Part], readers: ThreadPoolExecutor) -> Iterator[tuple[Part, np.ndarray]]:
    """Yield every part with the moments of its images: float [N, 2 C, H, W].

    The result of a batch is copied to the CPU when the next one has been given to the VAE, so a GPU is never idle.
    """
    reads = (partial(_read_rgb, job.dataset, number) for part in parts for number in part.numbers)
    images = ahead(readers, reads, depth=max(READ_AHEAD * job.batch_size, job.workers))
    batches = [batch for part in parts for batch in _batches(part, job.batch_size)]
    begun = (job.encoder(torch.stack([next(images) for _ in batch])) for batch in batches)
    nothing = torch.empty(0)  # after the last
    next_begun = pairwise(chain(begun, [nothing]))
    done = (_to_storage(job, batch, moments.cpu()) for batch, (moments, _) in zip(batches, next_begun, strict=True))
    for part in parts:
        yield part, np.concatenate([next(done) for _ in _batches(part, job.batch_size)])


def _batches(part: Part, size: int) -> list[list[str]]:
    return [part.names[first : first + size] for first in range(0, len(part.names), size)]


def _read_rgb(dataset: ArchiveDataset, index: int) -> Tensor:
    """Read pixels uint8 [3, H, W]: gray repeated, transparency dropped without blending."""
    try:
        pixels = dataset.images([index])[0]
    except DatasetError as error:
        raise DatasetError(f"{error}; replace or remove it and run the same again, finished parts are kept") from error
    return pixels[:1].expand(3, -1, -1) if len(pixels) < 3 else pixels[:3]


def _to_storage(job: _Job, names: Sequence[str], moments: Tensor) -> np.ndarray:
    stored = job.encoder.to_storage(moments)
    for name, exact, rounded in zip(names, moments, stored, strict=True):
        where = f"{job.files.path}/{name}"
        if not exact.isfinite().all():
            remedy = "use another VAE" if job.encoder.precision == "fp32" else "compute with --precision fp32"
            raise DatasetError(f"{where}: VAE {job.encoder.vae} makes NaN or infinity of it; {remedy}")
        if not rounded.isfinite().all():
            raise DatasetError(f"{where}: moments up to {exact.abs().max():.3g} do not fit fp16; use --dtype fp32")
    return stored.numpy()


def _write_part(job: _Job, part: Part, moments: np.ndarray) -> Part:
    """Write a part, with the sums for the statistics as the comment of its ZIP."""
    with atomic_output(part.path) as temporary, ZipFile(temporary, "w") as archive:
        for number, name, image in zip(part.numbers, part.names, moments, strict=True):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, image, allow_pickle=False)
            renamed = numbered("img-mean-std-", number, ".npy")
            archive.writestr(member(renamed), buffer.getvalue())
            write_conditions(archive, job.files, job.conditions, name, renamed)
        sums = total_of([sums_of_moments(image) for image in moments])
        archive.comment = json.dumps([sums.count, sums.sums.tolist()]).encode()
    return part


# ----------------------------------------------------------------------------------------------------------------------
# The result


def _finish(job: _Job, parts: Sequence[Part], out: Path, paper_statistics: bool) -> Encoded:
    """String the parts together, with labels and statistics."""
    if missing := [part for part in parts if not part.path.exists()]:
        raise OSError(f"{len(missing)} parts are not in {parts[0].path.parent}, where all processes must write them")
    statistics = total_of([_read_sums(part.path) for part in parts]).statistics()
    latents = {"vae": job.encoder.name, "pixel_range": list(job.encoder.pixel_range), **statistics.to_json()}
    if paper_statistics:
        latents |= {"mean": list(LatentCodec().mean), "std": list(LatentCodec().std)}

    def describe(names: list[str]) -> dict[str, Any]:
        labels = job.dataset.labels(range(len(names))).tolist()
        of_images = labels_to_json(dict(zip(names, labels, strict=True)), job.dataset.class_names)
        return of_images | {"latents": latents} | known_of_conditions(job.catalog)

    count = string_together(parts, out, describe)
    channels, height, width = ArchiveDataset(open_files(out)).shape
    return Encoded(count, (channels, height, width), statistics, latents)


def _read_sums(path: Path) -> Sums:
    with ZipFile(path) as archive:
        count, sums = json.loads(archive.comment)
    return Sums(count, np.array(sums))
