"""Many images in one NPZ file, as evaluation suites take them, written one by one: they need not fit into memory."""

from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import numpy as np

from edm2.post_hoc_ema import atomic_output


def write_npz(path: Path, images: Iterable[np.ndarray], count: int, labels: np.ndarray | None = None) -> None:
    """Write `arr_0`, all images in one array [N, ...], and `arr_1`, their labels [N]; complete or not there at all.

    `numpy.load` reads the file, larger than 4 GiB too. Its bytes depend on the contents alone.

    Args:
        path: File to write.
        images: Arrays of one shape and dtype.
        count: How many there are: NPY wants the shape first.
        labels: One per image, if there are any.

    Raises:
        ValueError: the images are not `count`, or not of one kind.
    """
    with atomic_output(path) as temporary, ZipFile(temporary, "w") as archive:
        with archive.open(_member("arr_0.npy"), "w", force_zip64=True) as file:
            _write_array(file, images, count, path)
        if labels is not None:
            with archive.open(_member("arr_1.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(labels), allow_pickle=False)


def _write_array(file, images: Iterable[np.ndarray], count: int, path: Path) -> None:
    """NPY of the images stacked, without stacking them."""
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


def _member(name: str) -> ZipInfo:
    """Without compression, the same on every day and every system."""
    member = ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3  # Unix, whose permissions the next line gives: all may read
    member.external_attr = 0o644 << 16
    return member
