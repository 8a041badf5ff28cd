"""Images to be scored: a folder of PNG files, a dataset, or an NPZ file."""

import struct
from pathlib import Path
from threading import Lock
from typing import IO
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import torch
from torch import Tensor

from edm2.io.npz import open_member
from edm2.training import Dataset, DatasetError, open_dataset
from edm2.training.data.dataset import Indices


def open_images(source: str | Path) -> Dataset:
    """Open images: an NPZ file as `edm2 generate` writes, or anything that `open_dataset` opens.

    Raises:
        DatasetError: nothing usable is there.
    """
    return NpzImages(Path(source)) if Path(source).suffix == ".npz" else open_dataset(source)


class NpzImages(Dataset):
    """Array `arr_0` of an NPZ file, uint8 [N, H, W, C] as evaluation suites have it; labels are not read.

    Images are read on demand: fifty thousand of 512x512 pixels take 39 GB.

    Args:
        path: The file; compressed ones are read as a whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file, (count, *shape) = _open_images(path)
        except FileNotFoundError:
            raise DatasetError(f"{path}: no such file") from None
        except Exception as error:  # damaged or hostile bytes make readers raise almost anything
            raise DatasetError(f"{path}: holds no images; expected arr_0, uint8 [N, H, W, C]") from error
        if shape[2] not in (1, 2, 3, 4):
            first = "; with channels first, transpose them" if shape[0] in (1, 3) else ""
            raise DatasetError(
                f"{path}: arr_0 has shape {[count, *shape]}; expected [N, H, W, C] with 1 to 4 channels{first}"
            )
        self._lock = Lock()
        self._start = self._file.tell()
        self._count, self._rows = count, tuple(shape)
        super().__init__(path.stem, (shape[2], *shape[:2]), "pixels", 256)

    def __len__(self) -> int:
        return self._count

    def images(self, indices: Indices) -> Tensor:
        return torch.stack([torch.from_numpy(self._image(int(index))) for index in indices]).permute(0, 3, 1, 2)

    def labels(self, indices: Indices) -> Tensor:
        return torch.full([len(indices)], -1)

    def _image(self, index: int) -> np.ndarray:
        size = int(np.prod(self._rows))
        with self._lock:  # threads share the file's position
            self._file.seek(self._start + index * size)
            data = self._file.read(size)
        if len(data) < size:
            raise DatasetError(f"{self._path}: ends before image {index}; it is truncated")
        return np.frombuffer(bytearray(data), dtype=np.uint8).reshape(self._rows)


def _open_images(path: Path) -> tuple[IO[bytes], tuple[int, ...]]:
    """Open `arr_0.npy` at the offset where its numbers begin; also returns its shape."""
    with ZipFile(path) as archive:
        member, header = open_member(archive, "arr_0.npy")
        if header.dtype != np.uint8 or header.by_columns or len(header.shape) != 4 or 0 in header.shape:
            raise ValueError(f"{header.dtype} {header.shape}")
        info = archive.getinfo("arr_0.npy")
        if info.compress_type != ZIP_STORED:
            return member, header.shape
        file, begin = path.open("rb"), member.tell()
    # The file itself: before Python 3.13 a stored member is read from its start at each step back.
    file.seek(info.header_offset + 26)  # lengths of name and extra field, which end the local header
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(name + extra + begin, 1)
    return file, header.shape
