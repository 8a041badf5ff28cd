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
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import PIL
import torch
from torch import Tensor

from edm2.datasets.measuring import Statistics, Sums, measure, sums_of_moments, total_of
from edm2.datasets.moments import MomentEncoder
from edm2.datasets.parts import (
    ahead,
    append,
    check_new_zip,
    digest,
    labels_to_json,
    member,
    parts_folder,
    remove,
    writing_to,
)
from edm2.post_hoc_ema import atomic_output
from edm2.training import DatasetError, LatentCodec
from edm2.training.data.archive import open_files
from edm2.training.data.dataset import ArchiveDataset
from edm2.training.data.files import Files
from edm2.training.data.index import open_archive
from edm2.training.distributed.processes import Processes

__all__ = ["Encoded", "encode"]

PART_SIZE = 64
"""Images per part; one batch if that is more."""

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
        max_images: Number of images to take from the beginning; default: all.
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
        ValueError: `out` does not end in .zip, the images do not fit the VAE, or a number is below 1.
        VAEError: The VAE cannot be loaded.
        FileExistsError: `out` exists.
        OSError: `out` cannot be written, for instance because the disk is full.
    """
    out, processes = Path(out), processes or Processes()
    _check_request(out, encoder, batch_size, max_images, workers, paper_statistics)
    job = _Job(*_list_source(Path(source), max_images), encoder, batch_size, workers, paper_statistics)
    encoder.check(*job.dataset.shape[1:])
    parts = _divide(job, parts_folder(out))
    with writing_to(out) as work:
        complete = work / f"{_digest_of_whole(job, parts)}.zip"
        if processes.is_first:
            _remove_others(work, parts, complete)
        processes.wait()
        if not complete.exists():
            _make_parts(job, processes.shard(parts), report)
        processes.wait()
        encoded = _finish(job, parts, complete, out) if processes.is_first else None
        processes.wait()
    return encoded


def _check_request(
    out: Path, encoder: MomentEncoder, batch_size: int, max_images: int | None, workers: int, paper_statistics: bool
) -> None:
    check_new_zip(out)
    if batch_size < 1 or workers < 1 or (max_images is not None and max_images < 1):
        raise ValueError(f"batch_size={batch_size}, max_images={max_images}, workers={workers} must be at least 1")
    paper = LatentCodec()
    if paper_statistics and (encoder.vae, encoder.pixel_range) != (paper.vae, paper.pixel_range):
        raise ValueError(
            f"the paper's statistics belong to {paper.vae} with pixels from 0 to 1, not to {encoder.vae} with "
            f"{encoder.pixel_range}; leave --paper-stats out to store the measured ones"
        )


# ----------------------------------------------------------------------------------------------------------------------
# Planning


@dataclass(frozen=True)
class _Job:
    """Images and settings."""

    files: Files
    dataset: ArchiveDataset
    names: list[str]
    encoder: MomentEncoder
    batch_size: int
    workers: int
    paper_statistics: bool

    @property
    def labels(self) -> list[int]:
        return self.dataset.labels(range(len(self.names))).tolist()


@dataclass(frozen=True)
class _Part:
    """Images that go into one file."""

    path: Path
    first: int  # number of the first image
    names: list[str]

    @property
    def sums(self) -> Path:
        """File of the sums for the statistics, written before the part."""
        return self.path.with_suffix(".json")

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + len(self.names))


def _list_source(source: Path, max_images: int | None) -> tuple[Files, ArchiveDataset, list[str]]:
    files, catalog = open_archive(source)
    dataset = ArchiveDataset(files, catalog)
    if dataset.kind != "pixels":
        raise DatasetError(f"{source}: holds moments already; train on it as it is")
    return files, dataset, list(catalog.names[:max_images])


def _divide(job: _Job, work: Path) -> list[_Part]:
    size = job.batch_size * max(1, PART_SIZE // job.batch_size)
    settings = [PIL.__version__, job.encoder.identity(), job.batch_size]  # sums in a VAE depend on the batch's size
    stamps = job.files.stamps(job.names)
    parts = []
    for first in range(0, len(job.names), size):
        chosen = slice(first, first + size)
        path = work / f"{digest(settings, first, job.names[chosen], stamps[chosen])}.zip"
        parts.append(_Part(path, first, job.names[chosen]))
    return parts


def _digest_of_whole(job: _Job, parts: Sequence[_Part]) -> str:
    names = [part.path.name for part in parts]
    return digest(names, job.labels, job.dataset.class_names, job.encoder.name, job.paper_statistics)


# ----------------------------------------------------------------------------------------------------------------------
# Parts


def _remove_others(work: Path, parts: Sequence[_Part], complete: Path) -> None:
    """Remove parts of other calls; a temporary file may be that of another process."""
    ours = {complete, *(part.path for part in parts), *(part.sums for part in parts)}
    remove(path for path in work.iterdir() if path not in ours and path.suffix != ".tmp")


def _make_parts(job: _Job, parts: Sequence[_Part], report: Callable[[int, int], None]) -> None:
    """Make the missing parts."""
    missing = [part for part in parts if not part.path.exists()]
    total = sum(len(part.names) for part in parts)
    done = total - sum(len(part.names) for part in missing)
    report(done, total)
    with ThreadPoolExecutor(job.workers) as readers, ThreadPoolExecutor(1) as writer:
        encoded = _encoded(job, missing, readers)
        for part in ahead(writer, (partial(_write_part, part, moments) for part, moments in encoded), depth=1):
            done += len(part.names)
            report(done, total)


def _encoded(job: _Job, parts: Sequence[_Part], readers: ThreadPoolExecutor) -> Iterator[tuple[_Part, np.ndarray]]:
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


def _batches(part: _Part, size: int) -> list[list[str]]:
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
        if not exact.isfinite().all():
            remedy = "use another VAE" if job.encoder.precision == "fp32" else "compute with --precision fp32"
            raise DatasetError(f"{job.files.path}/{name}: VAE {job.encoder.vae} makes NaN or infinity of it; {remedy}")
        if not rounded.isfinite().all():
            raise DatasetError(
                f"{job.files.path}/{name}: moments up to {exact.abs().max():.3g} do not fit fp16; use --dtype fp32"
            )
    return stored.numpy()


def _write_part(part: _Part, moments: np.ndarray) -> _Part:
    sums = total_of([sums_of_moments(image) for image in moments])
    with atomic_output(part.sums) as temporary:
        temporary.write_text(json.dumps(asdict(sums)))
    with atomic_output(part.path) as temporary, ZipFile(temporary, "w") as archive:
        for number, image in zip(part.numbers, moments, strict=True):
            archive.writestr(member(_moments_name(number)), _to_npy(image))
    return part


def _to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _moments_name(number: int) -> str:
    """Name of an image's moments, in folders of a thousand: 12345 is "00012/img-mean-std-00012345.npy"."""
    return f"{number:08}"[:5] + f"/img-mean-std-{number:08}.npy"


# ----------------------------------------------------------------------------------------------------------------------
# Assembly


def _finish(job: _Job, parts: Sequence[_Part], complete: Path, out: Path) -> Encoded:
    """String the parts together if they are not yet, and give the result its name."""
    if not complete.exists():
        _check_parts(parts)
        _assemble(job, parts, complete)
    dataset = ArchiveDataset(open_files(complete))
    some_gone = any(not part.sums.exists() for part in parts)  # stopped while they were removed
    statistics = measure(dataset, workers=job.workers) if some_gone else _statistics(parts)
    remove(path for path in complete.parent.iterdir() if path != complete)
    complete.replace(out)
    channels, height, width = dataset.shape
    return Encoded(len(dataset), (channels, height, width), statistics, dict(dataset.latents or {}))


def _check_parts(parts: Sequence[_Part]) -> None:
    missing = [part for part in parts if not part.path.exists()]
    if missing:
        raise OSError(f"{len(missing)} parts are not in {parts[0].path.parent}, where all processes must write them")


def _assemble(job: _Job, parts: Sequence[_Part], path: Path) -> None:
    with atomic_output(path) as temporary, ZipFile(temporary, "w") as archive:
        names = [name for part in parts for name in append(archive, part.path)]
        contents = labels_to_json(dict(zip(names, job.labels, strict=True)), job.dataset.class_names)
        contents["latents"] = _describe(job, _statistics(parts))
        archive.writestr(member("dataset.json"), json.dumps(contents))


def _statistics(parts: Sequence[_Part]) -> Statistics:
    return total_of([_read_sums(part.sums) for part in parts]).statistics()


def _read_sums(path: Path) -> Sums:
    sums = json.loads(path.read_text())
    return Sums(sums["count"], tuple(sums["first"]), tuple(sums["second"]))


def _describe(job: _Job, statistics: Statistics) -> dict[str, Any]:
    """Entry "latents" of dataset.json, for training and for decoding samples."""
    described = {"vae": job.encoder.name, "pixel_range": list(job.encoder.pixel_range), **statistics.to_json()}
    if job.paper_statistics:
        described |= {"mean": list(LatentCodec().mean), "std": list(LatentCodec().std)}
    return described
