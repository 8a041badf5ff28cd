"""Linear combinations of snapshots, part by part: every input is read once, for any number of targets.

A part is some thousand numbers. Those of all inputs stand as rows of a matrix X [inputs, n] in float32, and one matrix
product gives those of all targets, Y = C X with the coefficients C [targets, inputs]. A part is small enough to stay in
the processor's cache, so that the time goes into reading and writing; several threads take turns at it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor

from edm2.post_hoc_ema.snapshot import PartialSnapshot, Snapshot
from edm2.post_hoc_ema.tensor_files import TensorLayout, average_dtype

CACHE = 16 << 20
"""Bytes of a part, all rows together, beyond which it is no faster."""

ALIGNMENT = 64
"""Numbers: a part is computed in multiples of so many, all in whole registers; so places do not change rounding."""

SMALLEST_PART = 1024
"""Numbers: with fewer, calls of the system would take all the time."""


class Sink(Protocol):
    """Where the tensors of a target go."""

    def write(self, name: str, start: int, numbers: Tensor) -> None:
        """Keep numbers [n] of a tensor, from its number `start` on."""
        ...


@dataclass(frozen=True)
class Piece:
    """Some consecutive numbers of one tensor."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Part:
    """Pieces that are combined at once, with the same coefficients and in the same type."""

    pieces: tuple[Piece, ...]
    coefficients: Tensor
    """[targets, inputs], in the type in which to compute."""

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


@dataclass(frozen=True)
class Workspace:
    """Memory of one thread, used again for every part; new memory would have to be cleared by the system each time."""

    memory: Tensor
    """[bytes]."""

    def matrices(self, part: Part) -> tuple[Tensor, Tensor]:
        """X [inputs, n] and Y [targets, n] for a part, n rounded up."""
        targets, inputs = part.coefficients.shape
        n = round_up(len(part))
        numbers = self.memory.view(part.coefficients.dtype)[: (inputs + targets) * n]
        return numbers[: inputs * n].view(inputs, n), numbers[inputs * n :].view(targets, n)


def round_up(n: int) -> int:
    """The next multiple of ALIGNMENT."""
    return n + -n % ALIGNMENT


def combine(inputs: Sequence[PartialSnapshot], part: Part, workspace: Workspace) -> Tensor:
    """Σ_i x_i θ̂_i for every target, [targets, n]; in the workspace, so that the next part overwrites it."""
    X, Y = workspace.matrices(part)
    for row, snapshot in zip(X, inputs, strict=True):
        place = 0
        for piece in part.pieces:
            row[place : place + len(piece)] = snapshot.read_part(piece.name, piece.start, piece.stop)
            place += len(piece)
    X[:, len(part) :] = 0
    torch.mm(part.coefficients, X, out=Y)
    return Y[:, : len(part)]


@dataclass(frozen=True)
class Resources:
    """How much of the machine to use, worked out from what is allowed."""

    threads: int
    part: int
    """Numbers in a part."""
    workspace: int
    """Bytes of a thread's matrices."""

    @staticmethod
    def within(memory: int, threads: int, inputs: int, targets: int, itemsize: int = 4) -> "Resources":
        """Parts as large as the cache, or smaller, and fewer threads, where memory allows no more.

        Args:
            memory: Bytes for everything that is held at once.
            threads: At most so many.
            inputs: Rows to read.
            targets: Rows to compute.
            itemsize: Bytes per number, of the widest type to compute in.

        Raises:
            ValueError: Too little memory for the smallest part.
        """
        column = (inputs + targets) * itemsize
        held = column + 2 * 8  # besides the matrices, a row as it is read or written
        smallest = SMALLEST_PART * held
        if memory < smallest:
            raise ValueError(
                f"memory={memory} bytes is too little for {inputs} snapshots and {targets} targets at once;"
                f" allow {smallest} or more, or ask for fewer targets at a time"
            )
        threads = min(threads, memory // smallest)
        part = max(SMALLEST_PART, min(CACHE // column, memory // (threads * held)) // ALIGNMENT * ALIGNMENT)
        return Resources(threads, part, column * part)

    def new_workspace(self) -> Workspace:
        """Memory for one thread."""
        return Workspace(torch.empty(self.workspace, dtype=torch.uint8))


def make_parts(layouts: Mapping[str, TensorLayout], coefficients: Callable[[str], Tensor], size: int) -> Iterator[Part]:
    """All numbers of the given tensors in parts of at most `size`; small tensors share one.

    Args:
        layouts: The tensors to combine.
        coefficients: [targets, inputs] in float64 for a tensor's name; the same object for all that are alike.
        size: Numbers.
    """
    kinds: dict[tuple[int, torch.dtype], tuple[Tensor, list[str]]] = {}
    for name, layout in layouts.items():
        dtype = average_dtype(layout.dtype)
        x = coefficients(name)
        kinds.setdefault((id(x), dtype), (x.to(dtype), []))[1].append(name)
    for x, names in kinds.values():
        for pieces in _pack({name: layouts[name].numel for name in names}, size):
            yield Part(pieces, x)


def _pack(numels: Mapping[str, int], size: int) -> Iterator[tuple[Piece, ...]]:
    """Pieces of tensors, in order, `size` numbers at a time."""
    pieces: list[Piece] = []
    room = size
    for name, numel in numels.items():
        start = 0
        while start < numel:
            stop = min(numel, start + room)
            pieces.append(Piece(name, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield tuple(pieces)
                pieces, room = [], size
    if pieces:
        yield tuple(pieces)


def pour(
    inputs: Sequence[PartialSnapshot],
    parts: Iterable[Part],
    sinks: Sequence[Sink],
    resources: Resources,
    progress: Callable[[int, int], object],
) -> None:
    """Combine all parts, in several threads, and hand the rows to the targets' sinks.

    Args:
        inputs: The snapshots, as the coefficients are ordered.
        parts: What to combine.
        sinks: One per target.
        resources: Threads and memory.
        progress: Told after each part how many numbers of a target are done, and of how many.
    """
    parts = list(parts)
    done, total = 0, sum(map(len, parts))
    idle: SimpleQueue[Workspace] = SimpleQueue()
    for _ in range(resources.threads):
        idle.put(resources.new_workspace())

    def work(part: Part) -> int:
        workspace = idle.get()
        try:
            for sink, row in zip(sinks, combine(inputs, part, workspace), strict=True):
                place = 0
                for piece in part.pieces:
                    sink.write(piece.name, piece.start, row[place : place + len(piece)])
                    place += len(piece)
        finally:
            idle.put(workspace)
        return len(part)

    with exact_products(), _pool(resources.threads) as pool:
        try:
            for count in pool.map(work, parts):
                done += count
                progress(done, total)
        except BaseException:  # an interrupted run, too, stops at the next part
            pool.shutdown(cancel_futures=True)
            raise


def _pool(threads: int) -> ThreadPoolExecutor:
    """Our threads divide the work; torch's own would get in their way."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products of float32 in float32, as a program may have allowed bfloat16, for training; and in one thread.

    A part is too small to be divided further: on a busy machine, threads that wait for each other cost a multiple.
    Afterwards torch is as it was.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


class WholeTensors(PartialSnapshot):
    """A snapshot that reads whole tensors only, as one that reads parts: it holds the tensor last asked for.

    Not for several threads.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.images_seen = snapshot.images_seen
        self.sigma_rel = snapshot.sigma_rel
        self.names = snapshot.names
        self.buffers = getattr(snapshot, "buffers", ())  # readers from elsewhere need not have any
        self._held: tuple[str, Tensor] | None = None

    def read(self, name: str) -> Tensor:
        """One tensor."""
        if self._held is None or self._held[0] != name:
            self._held = None  # before the next one is there
            self._held = name, self.snapshot.read(name)
        return self._held[1]

    def layout(self, name: str) -> TensorLayout:
        """Type and shape, for which the tensor is read."""
        tensor = self.read(name)
        return TensorLayout(tensor.dtype, tuple(tensor.shape))

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        """Some of its numbers."""
        return self.read(name).reshape(-1)[start:stop]
