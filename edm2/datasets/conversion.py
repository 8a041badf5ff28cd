"""Images of any size to a dataset: RGB images of one size as PNG files in a ZIP, the form of the paper's tools.

    convert("photos", "photos-64.zip", CenterCropDhariwal(64, 64))

Every transform gives the pixels that those tools give (arXiv 2312.02696v2).

The work is divided into parts (see `edm2.datasets.parts`), which worker processes make. The bytes of a part do not
depend on which process makes it or on earlier interruptions; at the end the parts are strung together.
"""

import io
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import ZipFile

import PIL
from PIL import Image
from PIL.Image import Resampling

from edm2.datasets.parts import (
    Part,
    check_new_zip,
    divide,
    labels_to_json,
    make_missing,
    member,
    numbered,
    string_together,
    writing_to,
)
from edm2.post_hoc_ema import atomic_output
from edm2.training.data.archive import Catalog, read_image
from edm2.training.data.files import DatasetError, Files
from edm2.training.data.index import open_archive

__all__ = ["TRANSFORMS", "CenterCrop", "CenterCropDhariwal", "CenterCropWide", "Converted", "Resize", "convert"]

Source: TypeAlias = "str | Path | tuple[Files, Catalog]"
"""Folder or ZIP of images; or any files with a catalog of the images among them."""

PART_SIZE, PART_BYTES = 64, 1 << 23
"""Images of a part at least, and bytes of a part about: large enough that waiting for the disk pays."""

PART_VERSION = 2
"""Version of the bytes of a part; parts of other versions are not used."""

# ----------------------------------------------------------------------------------------------------------------------
# Transforms


@dataclass(frozen=True)
class Transform(ABC):
    """Function from an RGB image to one of `height` x `width` (`CenterCropWide`: `width` x `width`), None if too small.

    Two transforms whose `repr` is the same must do the same.
    """

    height: int
    """Rows of the result."""
    width: int
    """Columns of the result."""

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
    """Resize the largest square in the middle (Lanczos).

    Raises:
        ValueError: Height and width differ.
    """

    def __call__(self, image: Image.Image) -> Image.Image:
        side = min(image.size)
        return _middle(image, side, side).resize((self.width, self.height), Resampling.LANCZOS)


@dataclass(frozen=True)
class CenterCropDhariwal(_Square):
    """Halve, resize (bicubic), then crop, as ImageNet is usually prepared (Dhariwal and Nichol 2021, arXiv 2105.05233).

    Halved by 2x2 averages while the short side is at least twice the wanted one, so that the bicubic filter, which sees
    few pixels in their implementation, has little left to do.

    Raises:
        ValueError: Height and width differ.
    """

    def __call__(self, image: Image.Image) -> Image.Image:
        while min(image.size) >= 2 * self.height:
            image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
        scale = self.height / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        return _middle(image.resize(size, Resampling.BICUBIC), self.width, self.height)


@dataclass(frozen=True)
class CenterCropWide(Transform):
    """Resize a wide band from the middle (Lanczos), between black bars that make it a square of `width` x `width`.

    The band has all columns of the image and round(width H / W) of its H rows: as many as the image would have if it
    were `width` wide. Images with fewer than `width` columns, or bands of fewer than `height` rows, are too small.

    Raises:
        ValueError: Higher than wide.
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


@dataclass(frozen=True)
class Converted:
    """Result of a conversion."""

    images: int
    """Number of images in the result."""
    skipped: int
    """Number of images that were too small for the transform."""


def convert(
    source: Source,
    out: str | Path,
    transform: Transform,
    max_images: int | None = None,
    workers: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Write the images of `source` to the ZIP file `out`, in plain sort order of their names, with their labels.

    The bytes depend on the images, their names, the transform and Pillow's version alone. After an interruption or
    an error, the same call (with any number of workers) uses all finished parts. Needs twice the space of `out`
    while it runs.

    Args:
        source: Folder or ZIP of images (`edm2.training.data.archive`), or the result of `open_huggingface`. Grays
            become RGB, transparency is dropped.
        out: ZIP file to write; must not exist.
        transform: Makes the images one size. Images that are too small for it are left out, but use up a number.
        max_images: Number of images to take from the beginning; default: all.
        workers: Processes that divide the work; 1: this one.
        report: Called with the number of images done and of all, as the work goes on.

    Raises:
        DatasetError: The source cannot be used, an image cannot be read, or all are too small.
        ValueError: `out` does not end in .zip, or a number is below 1.
        FileExistsError: `out` exists.
        OSError: `out` cannot be written, for instance because the disk is full.
    """
    out = Path(out)
    check_new_zip(out)
    if workers < 1 or (max_images is not None and max_images < 1):
        raise ValueError(f"max_images={max_images} and workers={workers} must be at least 1")
    files, catalog = source if isinstance(source, tuple) else open_archive(Path(source))
    if arrays := [name for name in catalog.names if name.lower().endswith(".npy")]:
        raise DatasetError(f"{files.path}/{arrays[0]}: an array, not an image; such a dataset can be used as it is")
    names, labels = list(catalog.names[:max_images]), catalog.labels[:max_images].tolist()
    settings = [PART_VERSION, PIL.__version__, repr(transform)]
    parts = divide(out, names, files.stamps(names), _part_size(transform), settings)

    def describe(written: list[str]) -> dict[str, Any]:
        if not written:
            for part in parts:  # empty, so of no use to another call
                part.path.unlink()
            raise DatasetError(
                f"{files.path}: all {len(names)} images are too small for {transform}; "
                "choose a lower resolution or another transform"
            )
        return labels_to_json({name: labels[_image_number(name)] for name in written}, catalog.class_names)

    with writing_to(out):
        make_missing(parts, partial(_made, files=files, transform=transform, workers=workers), report)
        written = string_together(parts, out, describe)
    return Converted(written, len(names) - written)


def _part_size(transform: Transform) -> int:
    return max(PART_SIZE, PART_BYTES // (3 * transform.height * transform.width))


# ----------------------------------------------------------------------------------------------------------------------
# Parts


def _made(parts: Sequence[Part], files: Files, transform: Transform, workers: int) -> Iterator[Part]:
    """Make parts, here or in worker processes, and yield each when it is done."""
    workers = min(workers, len(parts))
    if workers <= 1:
        for part in parts:
            yield _make_part(part, files, transform)
        return
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(files, transform)) as pool:
        try:
            for future in as_completed([pool.submit(_make_part_in_worker, part) for part in parts]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # lets the parts that are being made be finished
            raise


_source_of_worker: tuple[Files, Transform]
"""Source and transform, handed over once per process: the directory of a large ZIP has a hundred megabytes."""


def _start_worker(files: Files, transform: Transform) -> None:
    global _source_of_worker
    _source_of_worker = files, transform
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent is killed: it would wait for work forever."""
    parent = parent_process()
    assert parent is not None  # only workers run this
    parent.join()
    os._exit(1)


def _make_part_in_worker(part: Part) -> Part:
    return _make_part(part, *_source_of_worker)


def _make_part(part: Part, files: Files, transform: Transform) -> Part:
    with atomic_output(part.path) as temporary, ZipFile(temporary, "w") as archive:
        for number, name in zip(part.numbers, part.names, strict=True):
            image = transform(_read_rgb(files, name))
            if image is not None:
                archive.writestr(member(numbered("img", number, ".png")), _encode(image))
    return part


def _read_rgb(files: Files, name: str) -> Image.Image:
    """Read an image as RGB: gray repeated, transparency dropped without blending, no color profile kept."""
    try:
        image = read_image(files, name)
    except DatasetError as error:
        raise DatasetError(f"{error}; replace or remove it and run the same again, finished parts are kept") from error
    image.info = {}
    return image if image.mode == "RGB" else image.convert("RGB")


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=0)  # large, but reading costs training no time
    return buffer.getvalue()


def _image_number(name: str) -> int:
    return int(name.removesuffix(".png").rpartition("img")[2])
