"""Order in which a run sees the images: shuffled, without end, and computable from any position.

A *position* counts the images of the run from 0, over all devices. What happens to an image depends on its position
alone, so the number of devices, the split of a batch and a resume change nothing.
"""

from collections.abc import Iterator
from itertools import count

import numpy as np


def permutation(length: int, seed: int, *stream: int) -> np.ndarray:
    """Random order of 0 .. length - 1, int64 [length]; another one for every (seed, stream).

    Sorts raw random bits: numpy promises those for good, but may change the algorithm of `Generator.permutation`.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=stream)).random_raw(length)
    return np.argsort(bits, kind="stable")


class ShuffledOrder:
    """Order in which every epoch visits each image exactly once, shuffled anew."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self._epochs: dict[int, np.ndarray] = {}

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Dataset index at each position start <= p < stop: int64 [stop - start]."""
        epochs = range(start // self.length, -(-stop // self.length))
        parts = [self._epoch(e)[max(start - e * self.length, 0) : stop - e * self.length] for e in epochs]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def _epoch(self, epoch: int) -> np.ndarray:
        """Order of one epoch: int64 [length]. The last two are kept: a batch may straddle them."""
        if epoch not in self._epochs:
            self._epochs = dict([*self._epochs.items()][-1:])
            self._epochs[epoch] = permutation(self.length, self.seed, epoch)
        return self._epochs[epoch]


class PositionBatches:
    """Dataset indices of one process's micro-batches, without end; a batch sampler for `data_loader`.

    A step takes `batch_size` consecutive positions. Process `rank` owns the `rank`-th of `world_size` equal, contiguous
    slices of them, and goes through it by `micro_batch` positions at a time. All of these divide evenly
    (`TrainingConfig.images_per_rank` checks it).

    Args:
        start: Position of the first image of the first step.
        batch_size: Positions per step, over all processes.
        micro_batch: Positions per element; default: all that the process owns of a step.
    """

    def __init__(
        self,
        order: ShuffledOrder,
        start: int,
        batch_size: int,
        *,
        micro_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        images_per_rank = batch_size // world_size
        self.order = order
        self.first = start + rank * images_per_rank
        self.batch_size = batch_size
        self.images_per_rank = images_per_rank
        self.micro_batch = micro_batch or images_per_rank

    def __iter__(self) -> Iterator[list[int]]:
        for first in count(self.first, self.batch_size):
            for position in range(first, first + self.images_per_rank, self.micro_batch):
                yield self.order.indices(position, position + self.micro_batch).tolist()
