"""Images of any size to a dataset: RGB images of one size as PNG files in a ZIP, the form of the paper's tools.

    convert("photos", "photos-64.zip", CenterCropDhariwal(64, 64))

Every transform gives the pixels that those tools give (arXiv 2312.02696v2), of what a viewer shows: photos upright,
transparency on a background. `PictureReader("ignore", "drop")` reads as those tools do.

The work is divided into parts (see `edm2.datasets.parts`), which worker processes make. The bytes of a part do not
depend on which process makes it or on earlier interruptions; at the end the parts are strung together.
"""

import io
import logging
import os
import signal
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import ZipFile

import numpy as np
import PIL
from PIL import Image
from PIL.Image import Resampling

from edm2.datasets.parts import (
    ConditionFiles,
    Part,
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
from edm2.datasets.pictures import PictureReader
from edm2.datasets.tally import Tally
from edm2.post_hoc_ema import atomic_output
from edm2.training.data.archive.catalog import Catalog
from edm2.training.data.archive.decoding import decode_image
from edm2.training.data.archive.files import DatasetError, Files, StorageError, suffix_of
from edm2.training.data.archive.index import open_archive

Source: TypeAlias = "str | Path | tuple[Files, Catalog]"
"""Folder or ZIP of images; or any files with a catalog of the images among them."""

PART_SIZE, PART_BYTES = 64, 1 << 23
"""Images of a part at least, and bytes of a part about: large enough that waiting for the disk pays."""

PART_VERSION = 5
"""Version of the bytes of a part; parts of other versions are not used."""

LARGEST = 1 << 26
"""Pixels of an image between two steps of a transform; a larger one is cropped first, which rounds otherwise."""

# ----------------------------------------------------------------------------------------------------------------------
# Transforms


@dataclass(frozen=True)
class Transform(ABC):
    """Function from an RGB image to one of `height` x `width` (`CenterCropWide`: `width` x `width`), None if too small.

    Two transforms whose `repr` is the same must do the same.
    """

    height: int
    width: int

    @abstractmethod
    def __call__(self, image: Image.Image) -> Image.Image | None: ...


@dataclass(frozen=True)
class _Square(Transform):
    def __post_init__(self) -> None:
        if self.height != self.width:
            raise ValueError(
                f"{self.height}x{self.width} is no square, but center-crop and center-crop-dhariwal cut squares; "
                "give one number as resolution, or choose resize or center-crop-wide"
            )


@dataclass(frozen=True)
class Resize(Transform):
    """Stretch the whole image (Lanczos)."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.resize((self.width, self.height), Resampling.LANCZOS)


@dataclass(frozen=True)
class CenterCrop(_Square):
    """Resize the largest square in the middle (Lanczos)."""

    def __call__(self, image: Image.Image) -> Image.Image:
        side = min(image.size)
        return _middle(image, side, side).resize((self.width, self.height), Resampling.LANCZOS)


@dataclass(frozen=True)
class CenterCropDhariwal(_Square):
    """Halve, resize (bicubic), then crop, as ImageNet is usually prepared (Dhariwal and Nichol 2021, arXiv 2105.05233).

    Halved by 2x2 averages while the short side is at least twice the wanted one, so that the bicubic filter, which sees
    few pixels in their implementation, has little left to do.
    """

    def __call__(self, image: Image.Image) -> Image.Image:
        while min(image.size) >= 2 * self.height:
            image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
        scale = self.height / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        if size[0] * size[1] > LARGEST:  # a very thin one
            return self._enlarged_middle(image, size)
        return _middle(image.resize(size, Resampling.BICUBIC), self.width, self.height)

    def _enlarged_middle(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Middle of an image of `size`, made of the pixels that it comes from alone."""
        left, top = (size[0] - self.width) // 2, (size[1] - self.height) // 2
        x, y = image.width / size[0], image.height / size[1]
        box = (left * x, top * y, (left + self.width) * x, (top + self.height) * y)
        return image.resize((self.width, self.height), Resampling.BICUBIC, box)


@dataclass(frozen=True)
class CenterCropWide(Transform):
    """Resize a wide band from the middle (Lanczos), between black bars that make it a square of `width` x `width`.

    The band has all columns of the image and round(width H / W) of its H rows: as many as the image would have if it
    were `width` wide. Images with fewer than `width` columns, or bands of fewer than `height` rows, are too small.
    """

    def __post_init__(self) -> None:
        if self.height > self.width:
            raise ValueError(f"center-crop-wide makes wide images, not {self.height}x{self.width} (height x width)")

    def __call__(self, image: Image.Image) -> Image.Image | None:
        rows = round(self.width * image.height / image.width)
        if image.width < self.width or rows < self.height:
            return None
        band = _middle(image, image.width, rows).resize((self.width, self.height), Resampling.LANCZOS)
        letter_box = Image.new("RGB", (self.width, self.width))
        letter_box.paste(band, (0, (self.width - self.height) // 2))
        return letter_box


TRANSFORMS: dict[str, Callable[[int, int], Transform]] = {
    "center-crop-dhariwal": CenterCropDhariwal,
    "center-crop": CenterCrop,
    "center-crop-wide": CenterCropWide,
    "resize": Resize,
}
"""Transforms by their names on the command line."""


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    """Crop to the middle `width` columns and `height` rows; an odd pixel is left over on the right and below."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


# ----------------------------------------------------------------------------------------------------------------------
# Conversion


class BrokenImages(DatasetError):
    """Images that cannot be read; `lines` holds one for each, with its reason."""

    def __init__(self, path: Path, total: int, tally: Tally) -> None:
        self.lines = [f"{path}/{name}: {reason}" for name, reason in tally.broken]
        super().__init__(
            f"{path}: {len(self.lines):,} of {total:,} images cannot be read, the first is {self.lines[0]}; replace or "
            "remove them and run the same again (finished parts are kept), or leave them out with --skip-broken"
        )


@dataclass(frozen=True)
class Converted:
    """Result of a conversion."""

    images: int
    tally: Tally
    """Counts of all files by what became of them."""
    notes: tuple[str, ...]
    """Lines about the source that may surprise its owner."""

    @property
    def skipped(self) -> int:
        """Number of images that were left out: too small for the transform, or broken."""
        return self.tally.total("too small") + self.tally.total("broken")


def convert(
    source: Source,
    out: str | Path,
    transform: Transform,
    max_images: int | None = None,
    workers: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
    *,
    reader: PictureReader | None = None,
    skip_broken: bool = False,
    labelled: bool = True,
) -> Converted:
    """Write the images of `source` to the ZIP file `out`, in plain sort order of their names, with their labels.

    The bytes depend on the images, their names, the transform, the reader and Pillow's version alone. After an
    interruption or an error, the same call (with any number of workers) uses all finished parts. Needs twice the space
    of `out` while it runs.

    Args:
        source: Folder or ZIP of images (`edm2.training.data.archive.catalog`), or the result of `open_huggingface`.
        out: ZIP file to write; must not exist.
        transform: Makes the images one size. Images that are too small for it are left out, but use up a number.
        max_images: Number of images to take, the first of each class and as many of each as there are; default: all.
        workers: Processes that divide the work; 1: this one.
        report: Called with the number of images done and of all, as the work goes on.
        reader: Makes RGB images of the files; default: upright, on white.
        skip_broken: Leave out images that cannot be read; they use up a number.
        labelled: False to write no labels, whatever folders and dataset.json say.

    Raises:
        BrokenImages: Images cannot be read; all of them are named, when all others are done.
        DatasetError: The source cannot be used, or nothing is left.
        ValueError: `out` does not end in .zip, or `max_images` is below 1.
        FileExistsError: `out` exists.
        OSError: `out` cannot be written, for instance because the disk is full.
    """
    out, reader = Path(out), reader or PictureReader()
    check_new_zip(out)
    files, catalog = source if isinstance(source, tuple) else open_archive(Path(source), reader.suffixes, labelled)
    if not labelled:
        catalog = replace(catalog, labels=np.full_like(catalog.labels, -1), class_names=())
    chosen = evenly_from_classes(catalog.labels, max_images)
    names, labels = [catalog.names[index] for index in chosen], catalog.labels[chosen].tolist()
    _refuse_arrays(files, names)
    settings = [PART_VERSION, PIL.__version__, repr(transform), reader.identity]
    conditions = conditions_to_carry(files, catalog, names)
    parts = divide(out, names, stamps_with_conditions(files, names, conditions), _part_size(transform), settings)
    job = _Job(files, transform, reader, conditions)

    def describe(written: list[str]) -> dict[str, Any]:
        if not written:
            for part in parts:  # empty, so of no use to another call
                part.path.unlink()
                _tally_path(part).unlink()
            raise DatasetError(
                f"{files.path}: all {len(names)} images are too small for {transform} or broken; "
                "choose a lower resolution or another transform"
            )
        of_images = labels_to_json({name: labels[_image_number(name)] for name in written}, catalog.class_names)
        return of_images | known_of_conditions(catalog)

    with writing_to(out):
        make_missing(parts, partial(_made, job=job, workers=workers), report)
        tally = sum((Tally.load(_tally_path(part)) for part in parts), Tally())
        if tally.broken and not skip_broken:
            raise BrokenImages(files.path, len(names), tally)
        tally.add_others(catalog.others, catalog.litter)
        written = string_together(parts, out, describe)
    return Converted(written, tally, catalog.notes)


def _refuse_arrays(files: Files, names: Sequence[str]) -> None:
    arrays = [name for name in names if suffix_of(name) == ".npy"]
    if arrays:
        alone = len(arrays) == len(names)
        remedy = "such a dataset can be used as it is" if alone else "move arrays away to convert the images"
        raise DatasetError(f"{files.path}/{arrays[0]}: an array, not an image; {remedy}")


def _part_size(transform: Transform) -> int:
    return max(PART_SIZE, PART_BYTES // (3 * transform.height * transform.width))


# ----------------------------------------------------------------------------------------------------------------------
# Parts


@dataclass(frozen=True)
class _Job:
    """Source and settings, as workers need them."""

    files: Files
    transform: Transform
    reader: PictureReader
    conditions: ConditionFiles


def _tally_path(part: Part) -> Path:
    return part.path.with_suffix(".json")


def _made(parts: Sequence[Part], job: _Job, workers: int) -> Iterator[Part]:
    """Make parts, here or in worker processes, and yield each when it is done."""
    workers = min(workers, len(parts))
    if workers <= 1:
        for part in parts:
            yield _make_part(part, job)
        return
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(job,)) as pool:
        try:
            for future in as_completed([pool.submit(_make_part_in_worker, part) for part in parts]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # lets the parts that are being made be finished
            raise


_job_of_worker: _Job
"""Job of a worker process, handed over once: the directory of a large ZIP has a hundred megabytes."""


def _start_worker(job: _Job) -> None:
    global _job_of_worker
    _job_of_worker = job
    logging.disable()  # what Pillow says of broken images is in the error, which the first process prints
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent is killed: it would wait for work forever."""
    parent = parent_process()
    assert parent is not None  # only workers run this
    parent.join()
    os._exit(1)


def _make_part_in_worker(part: Part) -> Part:
    return _make_part(part, _job_of_worker)


def _make_part(part: Part, job: _Job) -> Part:
    """Write a part, and before it the file that says what became of its images."""
    tally = Tally()
    with atomic_output(part.path) as temporary:
        with ZipFile(temporary, "w") as archive:
            for number, name in zip(part.numbers, part.names, strict=True):
                if (converted := _converted(job, name, tally)) is not None:
                    image, size = converted
                    renamed = numbered("img", number, ".png")
                    archive.writestr(member(renamed), _encode(image))
                    change = partial(_like_its_image, job.transform, size)
                    write_conditions(archive, job.files, job.conditions, name, renamed, change)
        with atomic_output(_tally_path(part)) as beside:
            tally.save(beside)
    return part


def _like_its_image(transform: Transform, size: tuple[int, int], file: str, data: bytes) -> bytes:
    """Picture of a condition: transformed as its image if it has the size of that, else as it is."""
    if suffix_of(file) == ".npy" or (picture := decode_image(data)).size != size:
        return data
    changed = transform(picture)
    assert changed is not None  # the image was large enough
    return _encode(changed)


def _converted(job: _Job, name: str, tally: Tally) -> tuple[Image.Image, tuple[int, int]] | None:
    """Image of the size asked for, and its size before; None if it is broken or too small, which is counted."""
    tally.count("found", name)
    try:
        picture = job.reader(job.files, name)
    except StorageError as error:
        raise DatasetError(f"{error}; run the same again, finished parts are kept") from error
    except DatasetError as error:
        tally.add_broken(name, str(error).removeprefix(f"{job.files.path}/{name}: "))
        return None
    image = job.transform(picture.image)
    if image is None:
        tally.count("too small", name)
        return None
    tally.count("converted", name)
    tally.add_picture(picture)
    if picture.image.width < job.transform.width or picture.image.height < job.transform.height:
        tally.count("enlarged", name)
    return image, picture.image.size


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=0)  # large, but reading costs training no time
    return buffer.getvalue()


def _image_number(name: str) -> int:
    return int(name.removesuffix(".png").rpartition("img")[2])
