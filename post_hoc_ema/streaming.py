"""Sums over snapshots for many targets of a large network: in bounded memory, by several threads, each input read once.

A block is some thousand numbers. Those of all inputs are the rows of a matrix X [inputs, n] in float32, and one matrix
product gives those of all targets, Y = C X with the coefficients C [targets, inputs]. A block is small enough to stay
in the processor's cache, so that the time goes into reading and writing; several threads take turns at it.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edm2.post_hoc_ema.snapshot import PartialSnapshot

MEMORY = 4 << 30
"""Bytes that reconstruction may use by default."""

THREADS = max(1, min(8, os.cpu_count() or 1))
"""Threads that reconstruction uses by default."""

CACHE = 16 << 20
"""Bytes of a block, all rows together, beyond which it is no faster."""

ALIGNMENT = 64
"""A block is computed in multiples of so many numbers, all in whole registers; so positions do not change rounding."""

SMALLEST_BLOCK = 1024
"""Numbers: with fewer, calls of the system would take all the time."""


class Writer(Protocol):
    """Destination of a target's tensors."""

    def write(self, name: str, start: int, numbers: Tensor) -> None:
        """Keep numbers [n] of a tensor, from its number `start` on; called from any thread."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Consecutive numbers of one tensor."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Block:
    """Chunks side by side, which one matrix product combines."""

    chunks: tuple[Chunk, ...]
    coefficients: Tensor
    """[targets, inputs], in the type in which to compute."""

    def __len__(self) -> int:
        return sum(map(len, self.chunks))

    def columns(self) -> Iterator[tuple[Chunk, slice]]:
        """Each chunk with its columns in the block."""
        offset = 0
        for chunk in self.chunks:
            yield chunk, slice(offset, offset + len(chunk))
            offset += len(chunk)


@dataclass(frozen=True)
class Resources:
    """Threads, and memory for each, that stay within a limit."""

    threads: int
    block: int
    workspace: int
    """Bytes of a thread's matrices."""

    @staticmethod
    def within(memory: int, threads: int, inputs: int, targets: int, itemsize: int = 4) -> "Resources":
        """Choose blocks as large as the cache, or smaller, and fewer threads, where memory allows no more.

        Args:
            memory: Bytes for everything that is held at once.
            threads: At most so many.
            inputs: Rows to read.
            targets: Rows to compute.
            itemsize: Bytes per number, of the widest type to compute in.

        Raises:
            ValueError: Too little memory for the smallest block.
        """
        column = (inputs + targets) * itemsize
        held = column + 2 * 8  # besides the matrices, a row as it is read or written
        smallest = SMALLEST_BLOCK * held
        if memory < smallest:
            raise ValueError(
                f"memory={memory} bytes is too little for {inputs} snapshots and {targets} targets at once;"
                f" allow {smallest} or more, or ask for fewer targets at a time"
            )
        threads = min(threads, memory // smallest)
        block = max(SMALLEST_BLOCK, min(CACHE // column, memory // (threads * held)) // ALIGNMENT * ALIGNMENT)
        return Resources(threads, block, column * block)


def make_blocks(numels: Mapping[str, int], coefficients: Tensor, size: int) -> Iterator[Block]:
    """Divide tensors, given by their numbers of numbers, into blocks of at most `size`; small tensors share one."""
    chunks: list[Chunk] = []
    free = size
    for name, numel in numels.items():
        start = 0
        while start < numel:
            stop = min(numel, start + free)
            chunks.append(Chunk(name, start, stop))
            free -= stop - start
            start = stop
            if not free:
                yield Block(tuple(chunks), coefficients)
                chunks, free = [], size
    if chunks:
        yield Block(tuple(chunks), coefficients)


def combine(inputs: Sequence[PartialSnapshot], block: Block, workspace: Tensor) -> Tensor:
    """Σ_i x_i θ̂_i for every target, [targets, n]; it lies in `workspace` [bytes], which the next block overwrites."""
    targets, rows = block.coefficients.shape
    n = len(block) + -len(block) % ALIGNMENT
    numbers = workspace.view(block.coefficients.dtype)[: (rows + targets) * n]
    X, Y = numbers.view(rows + targets, n).split([rows, targets])
    for row, snapshot in zip(X, inputs, strict=True):
        for chunk, columns in block.columns():
            row[columns] = snapshot.read_part(chunk.name, chunk.start, chunk.stop)
    X[:, len(block) :] = 0
    torch.mm(block.coefficients, X, out=Y)
    return Y[:, : len(block)]


def stream_combine(
    inputs: Sequence[PartialSnapshot],
    blocks: Iterable[Block],
    writers: Sequence[Writer],
    resources: Resources,
    progress: Callable[[int, int], object],
) -> None:
    """Combine all blocks, in several threads, and hand the rows to the targets' writers.

    While it runs, torch's number of threads and its precision of matrix products are changed for the whole process: see
    `_exact_products`.

    Args:
        inputs: The snapshots, as the coefficients are ordered.
        blocks: The numbers to combine.
        writers: One per target.
        resources: Threads and memory.
        progress: Called after each block with the numbers of a target that are done, and their total.
    """
    blocks = list(blocks)
    done, total = 0, sum(map(len, blocks))
    local = threading.local()

    def start_thread() -> None:
        torch.set_num_threads(1)  # our threads divide the work; torch's own would get in their way
        local.workspace = torch.empty(resources.workspace, dtype=torch.uint8)  # the system clears new memory: only once

    def work(block: Block) -> int:
        for writer, row in zip(writers, combine(inputs, block, local.workspace), strict=True):
            for chunk, columns in block.columns():
                writer.write(chunk.name, chunk.start, row[columns])
        return len(block)

    with _exact_products(), ThreadPoolExecutor(resources.threads, initializer=start_thread) as pool:
        try:
            for count in pool.map(work, blocks):
                done += count
                progress(done, total)
        except BaseException:  # an interrupted run, too, stops at the next block
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _exact_products() -> Iterator[None]:
    """Compute matrix products of float32 in float32, though a training may have allowed bfloat16, and in one thread.

    A block is too small to be divided further: on a busy machine, threads that wait for each other cost a multiple.
    Torch has these settings for the whole process only, so other threads of the program see them until the block ends;
    afterwards they are as they were.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
