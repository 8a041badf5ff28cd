"""Tensors of torch and arrays of numpy in a pickle that was read as data: where their numbers are in the file.

The numbers are read when asked for, one tensor at a time.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from edm2.io.published.inert_pickle import ByteString, Call, PickleFile, PickleRefused, read_pickle

STORAGES = {
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
class PickledTensor:
    """A tensor whose numbers are in the file."""

    dtype: torch.dtype
    start: int
    """Bytes from the start of the file to the first number."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Numbers in the file from the tensor's first to its last."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)) if self.numel else 0

    def read(self, file: BinaryIO) -> Tensor:
        """Read the tensor, contiguous.

        Raises:
            PickleRefused: the file has become shorter.
        """
        return self._read_span(file, 0, self.span).as_strided(self.shape, self.stride).contiguous()

    def read_part(self, file: BinaryIO, start: int, stop: int) -> Tensor:
        """Read numbers `start` to `stop`, in a row; of a tensor that is not contiguous, all are read for that.

        Raises:
            PickleRefused: the file has become shorter.
        """
        if self.stride == contiguous_stride(self.shape):
            return self._read_span(file, start, stop)
        return self.read(file).view(-1)[start:stop]

    def _read_span(self, file: Any, start: int, stop: int) -> Tensor:
        numbers = torch.empty(stop - start, dtype=self.dtype)
        file.seek(self.start + start * self.dtype.itemsize)
        if len(numbers) and file.readinto(numbers.view(torch.uint8).numpy()) < numbers.nbytes:
            raise PickleRefused("ends too early: it was truncated while it was read")
        return numbers


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, counted in numbers."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def locate_tensor(value: Any, file: PickleFile) -> PickledTensor:
    """Find a tensor, or a parameter, in the file.

    Raises:
        PickleRefused: another value, or a tensor that torch would not have written.
    """
    match value:
        case Call("torch._utils._rebuild_parameter", (tensor, bool(), dict())):
            value = tensor
    match value:
        case Call("torch._utils._rebuild_tensor_v2", (storage, int(offset), shape, stride, bool(), dict())):
            dtype, start, count = _locate_storage(storage, file)
            _check_sizes((offset,), shape, stride)
            return _within(count - offset, PickledTensor(dtype, start + offset * dtype.itemsize, shape, stride))
    raise PickleRefused("is damaged: a weight that is no tensor, or none that torch would have written")


def _locate_storage(value: Any, file: PickleFile) -> tuple[torch.dtype, int, int]:
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


def locate_array(value: Any) -> PickledTensor:
    """Find an array of numpy in the file.

    Raises:
        PickleRefused: another value, or an array of other things than little-endian floats.
    """
    match value:
        case Call(
            "numpy._core.multiarray._reconstruct" | "numpy.core.multiarray._reconstruct",  # the latter before numpy 2
            _,
            (1, shape, Call("numpy.dtype", (code, *_), (_, "<", *_)), bool(by_columns), ByteString(start, size)),
        ) if isinstance(code, str) and code in NUMPY_DTYPES:
            _check_sizes(shape)
            stride = contiguous_stride(shape[::-1])[::-1] if by_columns else contiguous_stride(shape)
            dtype = NUMPY_DTYPES[code]
            return _within(size // dtype.itemsize, PickledTensor(dtype, start, shape, stride))
    raise PickleRefused("is damaged, or holds an array of other things than little-endian floats")


def _check_sizes(*groups: Any) -> None:
    """Raise PickleRefused unless these are tuples of sizes."""
    for group in groups:
        of_integers = isinstance(group, tuple) and all(type(size) is int for size in group)
        if not of_integers or len(group) > MAX_DIMS or not all(0 <= size < 1 << 62 for size in group):
            raise PickleRefused("is damaged: a tensor whose shape or strides are no sizes")


def _within(count: int, tensor: PickledTensor) -> PickledTensor:
    """The tensor, if `count` numbers from its first on are enough for it."""
    # Its span alone would let strides of zero blow up one number to any size.
    if len(tensor.shape) != len(tensor.stride) or max(tensor.numel, tensor.span) > count:
        raise PickleRefused(f"is damaged: a tensor of shape {tensor.shape} reaches beyond its numbers")
    return tensor
