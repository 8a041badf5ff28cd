"""Tensors and arrays inside a pickle, found without executing it: where their numbers are in the file.

    torch.storage._load_from_bytes(bytes)       numbers in a row: a stream of torch.save as it was before ZIP files
    torch._utils._rebuild_tensor_v2(...)        a tensor: a storage, where it begins there, shape and strides
    torch._utils._rebuild_parameter(...)        the same, as a parameter
    numpy.(_)core.multiarray._reconstruct(...)  an array, filled in afterwards

The numbers are read when asked for, one tensor at a time.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import torch
from torch import Tensor

from edm2.io.published.inert_pickle import (
    Buildable,
    ByteString,
    Global,
    Maker,
    PickleFile,
    PickleRefused,
    read_pickle,
)

STORAGES: dict[str, torch.dtype] = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
}
NUMPY_DTYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}

MAX_DIMS = 8

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""First two pickles in a stream of torch.save."""


@dataclass(frozen=True)
class Storage:
    """Numbers in a row in the file."""

    dtype: torch.dtype
    offset: int
    """Bytes from the start of the file."""
    count: int
    """Numbers."""


@dataclass(frozen=True)
class PickledTensor:
    """A tensor whose numbers are in the file."""

    storage: Storage
    offset: int
    """Numbers from the start of the storage."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = (self.offset, *self.shape, *self.stride)
        if not len(self.shape) == len(self.stride) <= MAX_DIMS:
            raise PickleRefused("is damaged: a tensor whose shape and strides do not fit each other")
        if not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes):
            raise PickleRefused("is damaged: a tensor's shape or strides are no sizes")
        # The second bound alone would let strides of zero blow up one number to any size.
        if self.numel > self.storage.count or self.offset + self.span > self.storage.count:
            raise PickleRefused(f"is damaged: a tensor of shape {self.shape} reaches beyond its numbers")

    @property
    def dtype(self) -> torch.dtype:
        """dtype in the file."""
        return self.storage.dtype

    @property
    def numel(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Numbers from the first to the last in the storage."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)) if self.numel else 0

    def read(self, file: BinaryIO) -> Tensor:
        """Read the tensor, contiguous.

        Raises:
            PickleRefused: the file has become shorter.
        """
        return self._read_storage(file, 0, self.span).as_strided(self.shape, self.stride).contiguous()

    def read_part(self, file: BinaryIO, start: int, stop: int) -> Tensor:
        """Read numbers `start` to `stop`, in a row; of a tensor that is not contiguous, all are read for that.

        Raises:
            PickleRefused: the file has become shorter.
        """
        if self.stride == contiguous_stride(self.shape, by_columns=False):
            return self._read_storage(file, start, stop)
        return self.read(file).view(-1)[start:stop]

    def _read_storage(self, file: Any, start: int, stop: int) -> Tensor:
        """Numbers of the storage, counted from the tensor's first."""
        numbers = torch.empty(stop - start, dtype=self.dtype)
        file.seek(self.storage.offset + (self.offset + start) * self.dtype.itemsize)
        if len(numbers) and file.readinto(numbers.view(torch.uint8).numpy()) < numbers.nbytes:
            raise PickleRefused("ends too early: it was truncated while it was read")
        return numbers


def contiguous_stride(shape: Sequence[int], by_columns: bool) -> tuple[int, ...]:
    """Strides of a contiguous array, counted in numbers."""
    dims = range(len(shape))
    return tuple(math.prod(shape[:dim] if by_columns else shape[dim + 1 :]) for dim in dims)


# ------------------------------------------------------------------------------------------------ torch


def torch_makers(file: PickleFile) -> dict[str, Maker | None]:
    """Makers of tensors, by the names that torch puts into pickles."""
    return {
        "torch.storage._load_from_bytes": partial(make_storage, file),
        "torch._utils._rebuild_tensor_v2": make_tensor,
        "torch._utils._rebuild_parameter": make_parameter,
    }


def make_storage(file: PickleFile, *arguments: Any) -> Storage:
    """torch.storage._load_from_bytes(bytes): a stream of five pickles, the number of numbers, and these."""
    match arguments:
        case (ByteString(offset, size),):
            pass
        case _:
            raise PickleRefused("is damaged: numbers that are no byte string")
    behind = file.file.tell()
    file.file.seek(offset)
    names = dict.fromkeys(STORAGES)
    header = [read_pickle(file, names, persistent_load=_dtype_and_count) for _ in range(5)]
    match header:
        case [int(magic), int(protocol), {"little_endian": True}, (str(key), torch.dtype() as dtype, int(count)), keys]:
            if (magic, protocol) != (MAGIC, PROTOCOL) or keys != [key]:
                raise PickleRefused("was written by another version of torch.save, or is damaged")
        case _:
            raise PickleRefused("is damaged, or from another kind of machine: numbers that torch.save has not written")
    counted = file.read(8)
    start = file.file.tell()
    if counted != struct.pack("<q", count) or start + count * dtype.itemsize != offset + size:
        raise PickleRefused("is damaged: it does not hold as many numbers as it says")
    file.file.seek(behind)
    return Storage(dtype, start, count)


def _dtype_and_count(identifier: Any) -> tuple[str, torch.dtype, int]:
    """Key, dtype and count of a storage, from the persistent id that torch.save writes."""
    match identifier:
        case ("storage", Global(name), str(key), str(), int(count), *view) if view in ([], [None]):
            if 0 <= count < 1 << 62:
                return key, STORAGES[name], count
    raise PickleRefused("is damaged: a storage that torch would not have written")


def make_tensor(*arguments: Any) -> PickledTensor:
    """Stand in for torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(stride), bool(), dict(hooks)) if not hooks:
            return PickledTensor(storage, offset, shape, stride)
    raise PickleRefused("is damaged: a tensor that torch would not have written")


def make_parameter(*arguments: Any) -> PickledTensor:
    """Stand in for torch._utils._rebuild_parameter(tensor, requires_grad, hooks)."""
    match arguments:
        case (PickledTensor() as tensor, bool(), dict(hooks)) if not hooks:
            return tensor
    raise PickleRefused("is damaged: a parameter that torch would not have written")


# ------------------------------------------------------------------------------------------------ numpy


class NumpyDtype(Buildable):
    """numpy.dtype("f4", False, True): floats of either machine's order."""

    def __init__(self, *arguments: Any) -> None:
        match arguments:
            case (str(code), bool(), bool()) if code in NUMPY_DTYPES:
                self.dtype = NUMPY_DTYPES[code]
            case _:
                raise PickleRefused("holds an array of other things than floats")

    def build(self, state: Any) -> None:
        """State (version, byte order, ...)."""
        match state:
            case (int(), "<", None, None, None, int(), int(), int()):
                return
        raise PickleRefused("holds an array of other things than little-endian floats")


class NumpyArray(Buildable):
    """numpy._core.multiarray._reconstruct(numpy.ndarray, (0,), b"b"): an empty array to be filled."""

    def __init__(self, *arguments: Any) -> None:
        match arguments:
            case (Global("numpy.ndarray"), (0,), ByteString()):
                self.numbers: PickledTensor | None = None
            case _:
                raise PickleRefused("is damaged: an array that numpy would not have written")

    def build(self, state: Any) -> None:
        """State (version, shape, dtype, whether columns come first, bytes)."""
        match state:
            case (1, tuple(shape), NumpyDtype(dtype=dtype), bool(by_columns), ByteString(offset, size)):
                if len(shape) > MAX_DIMS or not all(type(n) is int for n in shape):  # before they are multiplied
                    raise PickleRefused("is damaged: an array's shape is no sizes")
                storage = Storage(dtype, offset, size // dtype.itemsize)
                self.numbers = PickledTensor(storage, 0, shape, contiguous_stride(shape, by_columns))
            case _:
                raise PickleRefused("is damaged: an array that numpy would not have written")


NUMPY_MAKERS: dict[str, Maker | None] = {
    "numpy._core.multiarray._reconstruct": NumpyArray,
    "numpy.core.multiarray._reconstruct": NumpyArray,  # before numpy 2
    "numpy.ndarray": None,
    "numpy.dtype": NumpyDtype,
}
"""Makers of arrays, by the names that numpy puts into pickles."""
