"""Distances and nearest neighbours of features, in blocks that fit into memory."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 22
"""Numbers in an array that is worked on at a time: 32 MB, the distances of 2,048 rows to as many others for example."""


def distance_blocks(x: npt.NDArray, y: npt.NDArray) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
    """Yield Euclidean distances of all rows of x [N, D] to those of y [M, D]: (rows, [n, M]) block by block.

    In float64, since |x|² + |y|² - 2 x·y cancels where rows are near: equal ones come out within 1e-7 |x| of 0.
    The more rows y has, the fewer of x are in a block.
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{x.shape[1]} and {y.shape[1]} features per image cannot be compared")
    y = y.astype(np.float64)
    squares = _squares(y)
    for rows in _parts(len(x), max(1, *y.shape)):
        part = x[rows].astype(np.float64)
        distances = part @ y.T
        distances *= -2  # in place, as all that follows: a second array of this size would double the memory
        distances += squares
        distances += _squares(part)[:, None]
        yield rows, np.sqrt(np.maximum(distances, 0, out=distances), out=distances)


def nearest(x: npt.NDArray, y: npt.NDArray, k: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Find the k nearest rows of y [M, D] for every row of x [N, D], nearest first: indices and distances, [N, k].

    If y has fewer than k rows, all of them.
    """
    indices, nearest_so_far = np.empty((len(x), 0), np.int64), np.empty((len(x), 0))
    for columns in _parts(len(y), max(1, y.shape[1])):
        found = [_smallest(distances, k) for _, distances in distance_blocks(x, y[columns])]
        local, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
        chosen, nearest_so_far = _smallest(np.hstack([nearest_so_far, distances]), k)
        indices = np.take_along_axis(np.hstack([indices, columns.start + local]), chosen, axis=1)
    return indices, nearest_so_far


def nearest_other(x: npt.NDArray, rows: npt.NDArray[np.int64], k: int = 1) -> npt.NDArray[np.float64]:
    """Distances of the given rows of x [N, D] to their k-th nearest other row, [len(rows)]."""
    indices, distances = nearest(x[rows], x, k + 1)  # one of them is the row itself, unless that has k + 1 copies
    distances[indices == rows[:, None]] = np.inf
    return np.sort(distances, axis=1)[:, k - 1]


def _parts(count: int, row_size: int) -> Iterator[slice]:
    """Split `count` rows of `row_size` numbers into parts that fit into a block."""
    size = max(1, BLOCK // row_size)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _squares(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Squared norms |x|² of the rows, without an array of all squares."""
    return np.einsum("nd,nd->n", rows, rows)


def _smallest(distances: npt.NDArray, k: int) -> tuple[npt.NDArray, npt.NDArray]:
    """Columns and values of the k smallest of every row, in order; of all, if there are fewer."""
    k = min(k, distances.shape[1])
    columns = np.argpartition(distances, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(distances, columns, axis=1)
    order = np.argsort(values, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1)
