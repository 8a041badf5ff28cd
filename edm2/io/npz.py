"""NPZ files: many images in one array, written one by one since they need not fit into memory, and untrusted ones read.

Evaluation suites take samples in this form.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from edm2.datasets.parts import member
from edm2.post_hoc_ema import atomic_output

MAX_UNPACKED = 1 << 32
"""Bytes of a compressed array, which is read as a whole; others are read in place."""


@dataclass(frozen=True)
class Header:
    """Shape, dtype and order of an array, as its header announces them."""

    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool


def open_member(archive: ZipFile, name: str) -> tuple[IO[bytes], Header]:
    """Open an array in an NPZ file: the file of its numbers, standing at the first, and its header.

    Memory is allocated for the numbers in the file, not for those that the header announces.

    Raises:
        Exception: of almost any kind, if the file is damaged, or holds objects, or other numbers than it announces.
    """
    info = archive.getinfo(name)
    file: IO[bytes] = archive.open(info)
    if info.compress_type != ZIP_STORED:
        if info.file_size > MAX_UNPACKED:
            raise ValueError(f"{info.file_size:,} bytes, compressed; store it as numpy.savez does")
        file = io.BytesIO(file.read())  # seeking back in compressed data begins anew each time
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, by_columns, dtype = read_header[np.lib.format.read_magic(file)](file)
    if dtype.hasobject or file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(f"{dtype} {shape} in {info.file_size:,} bytes")
    return file, Header(shape, dtype, by_columns)


def read_member(archive: ZipFile, name: str) -> np.ndarray:
    """Read an array in an NPZ file. Raises as `open_member` does."""
    file, header = open_member(archive, name)
    with file:
        numbers = np.frombuffer(bytearray(file.read()), header.dtype)
    return numbers.reshape(header.shape, order="F" if header.by_columns else "C")


def write_npz(path: Path, images: Iterable[np.ndarray], count: int, labels: np.ndarray | None = None) -> None:
    """Write `arr_0`, all images in one array [N, ...], and `arr_1`, their labels [N], completely or not at all.

    `numpy.load` reads the file, larger than 4 GiB too. Its bytes depend on the contents alone.

    Args:
        images: Arrays of one shape and dtype.
        count: Number of images: an NPY file begins with the shape.

    Raises:
        ValueError: another number of images, or images of several shapes or dtypes.
    """
    with atomic_output(path) as temporary, ZipFile(temporary, "w") as archive:
        with archive.open(member("arr_0.npy"), "w", force_zip64=True) as file:
            _write_array(file, images, count, path)
        if labels is not None:
            with archive.open(member("arr_1.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(labels), allow_pickle=False)


def _write_array(file, images: Iterable[np.ndarray], count: int, path: Path) -> None:
    """Write the NPY file of the stacked images, without stacking them."""
    written, kind = 0, None
    for image in images:
        if kind is None:
            kind = image.shape, image.dtype
            header = {"descr": np.lib.format.dtype_to_descr(image.dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, header | {"shape": (count, *image.shape)})
        if (image.shape, image.dtype) != kind:
            raise ValueError(f"{path}: image {written} is {image.dtype} {image.shape}, the first is not")
        file.write(np.ascontiguousarray(image).data)
        written += 1
    if written != count or written == 0:
        raise ValueError(f"{path}: {written} images, but {count} were announced")
