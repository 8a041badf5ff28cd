"""Tensors of torch and arrays of numpy in a pickle that was read as data: where their numbers are in the file."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edm2.io.published.inert_pickle import ByteString, Call, PickleFile, PickleRefused, read_pickle
from edm2.post_hoc_ema import TensorLayout
from edm2.post_hoc_ema.tensor_files import StoredTensor, read_numbers

STORAGES = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
}

MAX_DIMS = 8

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""First two pickles in a stream of torch.save."""


@dataclass(frozen=True)
class PickledTensor:
    """A tensor whose numbers are in the file, read when asked for; EOFError if the file has become shorter."""

    layout: TensorLayout
    stride: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""

    @property
    def span(self) -> int:
        """Numbers in the file from the tensor's first to its last."""
        steps = zip(self.layout.shape, self.stride, strict=True)
        return 1 + sum((n - 1) * s for n, s in steps) if self.layout.numel else 0

    def read(self, path: Path) -> Tensor:
        """Read the tensor, contiguous."""
        numbers = read_numbers(path, StoredTensor(self.layout, self.offset), 0, self.span)
        return numbers.as_strided(self.layout.shape, self.stride).contiguous()

    def read_part(self, path: Path, start: int, stop: int) -> Tensor:
        """Read numbers `start` to `stop`, in a row; of a tensor that is not contiguous, all are read for that."""
        shape = self.layout.shape
        if self.stride == tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape))):
            return read_numbers(path, StoredTensor(self.layout, self.offset), start, stop)
        return self.read(path).view(-1)[start:stop]


def locate_tensor(value: Any, file: PickleFile) -> PickledTensor:
    """Find a tensor, or a parameter, in the file."""
    match value:
        case Call("torch._utils._rebuild_parameter", (tensor, bool(), dict())):
            value = tensor
    match value:
        case Call("torch._utils._rebuild_tensor_v2", (storage, offset, tuple(shape), tuple(stride), bool(), dict())):
            dtype, start, count = locate_storage(storage, file)
            sizes = (offset, *shape, *stride)
            if len(shape) == len(stride) <= MAX_DIMS and all(type(n) is int and 0 <= n < 1 << 62 for n in sizes):
                tensor = PickledTensor(TensorLayout(dtype, shape), stride, start + offset * dtype.itemsize)
                # Its span alone would let strides of zero blow up one number to any size.
                if offset + max(tensor.layout.numel, tensor.span) <= count:
                    return tensor
            raise PickleRefused("is damaged: a tensor whose shape reaches beyond its numbers, or is no sizes")
    raise PickleRefused("is damaged: a weight that is no tensor, or none that torch would have written")


def locate_storage(value: Any, file: PickleFile) -> tuple[torch.dtype, int, int]:
    """Find numbers in a row: their dtype, the offset of the first, their count.

    torch wraps them in a stream of torch.save as it was before ZIP files: five pickles, the count, the numbers.
    """
    match value:
        case Call("torch.storage._load_from_bytes", (ByteString(offset, size),)):
            file.file.seek(offset)
        case _:
            raise PickleRefused("is damaged: numbers that are no byte string")
    magic, protocol, system, storage, _ = (read_pickle(file) for _ in range(5))
    match system, storage:
        case {"little_endian": True}, Call("persistent", (("storage", Call(name), str(), str(), int(count), *_),)) if (
            name in STORAGES and (magic, protocol) == (MAGIC, PROTOCOL)
        ):
            counted, start = file.read(8), file.file.tell()
            fits = start + count * STORAGES[name].itemsize == offset + size
            if count >= 0 and fits and counted == struct.pack("<q", count):
                return STORAGES[name], start, count
    raise PickleRefused("is damaged: numbers that torch.save would not have written, at least on such a machine")


def read_array(value: Any, file: PickleFile) -> np.ndarray:
    """Read an array of numpy."""
    match value:
        case Call(
            "numpy._core.multiarray._reconstruct" | "numpy.core.multiarray._reconstruct",  # the latter before numpy 2
            _,
            (1, tuple(shape), Call("numpy.dtype", (code, *_), (_, "<", *_)), bool(by_columns), ByteString(start, size)),
        ) if code in ("f2", "f4", "f8"):
            file.file.seek(start)
            try:
                numbers = np.frombuffer(file.file.read(size), dtype=f"<{code}")
                return numbers.reshape(shape, order="F" if by_columns else "C")
            except (OverflowError, TypeError, ValueError):
                raise PickleRefused("is damaged: an array whose shape does not fit its numbers") from None
    raise PickleRefused("is damaged, or holds an array of other things than little-endian floats")
