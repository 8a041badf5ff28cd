"""Nearest neighbours among features, in blocks that fit into memory."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BLOCK = 1024
"""Rows compared at a time: with 50,000 others that takes 400 MB."""


def distance_blocks(x: npt.NDArray, y: npt.NDArray) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
    """Euclidean distances of all rows of x [N, D] to those of y [M, D]: (rows, [n, M]) block by block.

    In float64, since |x|² + |y|² - 2 x·y cancels where rows are near: equal ones come out within 1e-7 |x| of 0.

    Raises:
        ValueError: rows of different lengths.
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{x.shape[1]} and {y.shape[1]} features per image cannot be compared")
    y = y.astype(np.float64)
    squares = np.square(y).sum(axis=1)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        part = x[rows].astype(np.float64)
        squared = np.square(part).sum(axis=1, keepdims=True) + squares - 2 * (part @ y.T)
        yield rows, np.sqrt(np.clip(squared, 0, None))


def nearest(x: npt.NDArray, y: npt.NDArray, k: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The k nearest rows of y [M, D] for every row of x [N, D], nearest first: indices and distances, [N, k].

    If there are fewer than k, all of them.
    """
    found = [_smallest(distances, min(k, len(y))) for _, distances in distance_blocks(x, y)]
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def nearest_other(x: npt.NDArray, rows: npt.NDArray[np.int64], k: int = 1) -> npt.NDArray[np.float64]:
    """Distance of the given rows of x [N, D] to their k-th nearest other row, [len(rows)]."""
    found = []
    for block, distances in distance_blocks(x[rows], x):
        own = rows[block]
        distances[np.arange(len(own)), own] = np.inf
        found.append(np.partition(distances, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found)


def _smallest(distances: npt.NDArray, k: int) -> tuple[npt.NDArray, npt.NDArray]:
    """The k smallest of every row, in order: columns and values."""
    columns = np.argpartition(distances, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(distances, columns, axis=1)
    order = np.argsort(values, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1)
