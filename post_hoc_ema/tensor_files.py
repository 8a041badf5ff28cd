"""Parts of safetensors files: read from the middle of a tensor, and written in any order.

The library reads and writes whole tensors; a reconstruction of many averages holds a few thousand numbers of each. The
format is a length (8 bytes, little-endian), a header in JSON with the offset of each tensor, and the numbers.
"""

import json
import math
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from edm2.post_hoc_ema.files import atomic_output

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BOOL": torch.bool,
}
"""Types by their names in the format."""

CODES = {dtype: code for code, dtype in DTYPES.items()}


def average_dtype(dtype: torch.dtype) -> torch.dtype | None:
    """Type in which tensors of `dtype` are averaged: float32 at least; None for integers, which are copied.

    One update moves an average by parts per million, which vanishes in the rounding of bfloat16 and float16.
    """
    if dtype.is_floating_point or dtype.is_complex:
        return dtype if dtype.itemsize > 4 else torch.float32
    return None


@dataclass(frozen=True)
class TensorLayout:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that its numbers take."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, its numbers one after the other."""

    layout: TensorLayout
    offset: int
    """Bytes from the start of the file."""


def locate_tensors(path: Path) -> dict[str, StoredTensor]:
    """Layouts and offsets of the tensors in a safetensors file, by name; those of unusual types are left out.

    The file must have been found to be sound before.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            TensorLayout(DTYPES[entry["dtype"]], tuple(entry["shape"])), 8 + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
        if entry["dtype"] in DTYPES
    }


def read_numbers(path: Path, stored: StoredTensor, start: int, stop: int) -> Tensor:
    """Read numbers `start` to `stop` of a tensor, as [stop - start]. The file is open only meanwhile.

    Read, not mapped: mapped pages would count as this program's memory until the system takes them back.
    """
    numbers = torch.empty(stop - start, dtype=stored.layout.dtype)
    view = _bytes_of(numbers)
    with path.open("rb", buffering=0) as file:
        file.seek(stored.offset + start * numbers.itemsize)
        while len(view):  # the system may hand out less at a time
            count = file.readinto(view)
            if not count:
                raise EOFError(f"{path} has become shorter")
            view = view[count:]
    return numbers


class SafetensorsWriter:
    """A safetensors file whose numbers are written part by part, in any order, from any thread."""

    def __init__(self, file: BinaryIO, layouts: Mapping[str, TensorLayout], metadata: Mapping[str, str]) -> None:
        """Write the header and reserve the file's length.

        Args:
            file: Unbuffered, open for writing, empty.
            layouts: The tensors by name. They are stored by size of their numbers, then by name, so that all are
                aligned.
            metadata: Texts for the header.
        """
        self._file = file
        self._lock = threading.Lock()
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        end = 0  # of the numbers so far, counted from the end of the header, as the format does
        for name in sorted(layouts, key=lambda name: (-layouts[name].dtype.itemsize, name)):
            layout = layouts[name]
            offsets = [end, end + layout.nbytes]
            header[name] = {"dtype": CODES[layout.dtype], "shape": layout.shape, "data_offsets": offsets}
            end += layout.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        self._stored = {
            name: StoredTensor(layout, start + header[name]["data_offsets"][0]) for name, layout in layouts.items()
        }
        file.truncate(start + end)
        _write(file, memoryview(struct.pack("<Q", len(text)) + text))

    def write(self, name: str, start: int, numbers: Tensor) -> None:
        """Write numbers [n] of a tensor, from its number `start` on, converted to its type."""
        stored = self._stored[name]
        numbers = numbers.to(stored.layout.dtype).contiguous()
        with self._lock:
            self._file.seek(stored.offset + start * numbers.itemsize)
            _write(self._file, _bytes_of(numbers))


@contextmanager
def writing_safetensors(
    path: str | os.PathLike[str], layouts: Mapping[str, TensorLayout], metadata: Mapping[str, str]
) -> Iterator[SafetensorsWriter]:
    """Yield the writer of a file that appears under its name, complete, when the block succeeds."""
    with atomic_output(path) as temporary, temporary.open("wb", buffering=0) as file:
        yield SafetensorsWriter(file, layouts, metadata)


def _write(file: BinaryIO, data: memoryview) -> None:
    """Write all of the data: the system may take less at a time."""
    while len(data):
        data = data[file.write(data) :]


def _bytes_of(numbers: Tensor) -> memoryview:
    """The memory of a tensor [n]."""
    return memoryview(numbers.view(torch.uint8).numpy())  # type: ignore[arg-type]  # an array is a buffer
