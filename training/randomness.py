"""Random numbers that belong to an image's place in the run.

Place p is the p-th image that the run visits, counted from zero. What an image meets there (noise level, noise, label
dropout, mirroring) is drawn for blocks of consecutive places, each from a generator seeded by (seed, stream, block).
Neither the number of devices, nor the split into micro-batches, nor a restart changes it.
"""

from enum import IntEnum, unique

import numpy as np
import torch
from torch import Tensor


@unique
class Stream(IntEnum):
    """What a random number is used for; the streams are independent."""

    SIGMA = 0
    NOISE = 1
    LABEL_DROPOUT = 2
    XFLIP = 3
    DROPOUT = 4
    MOMENTS = 5


class PositionRandom:
    """Random numbers by place.

    Args:
        seed: Seed of the run.
        block_size: Consecutive places drawn together.
        device: Where the numbers are drawn; another kind of device draws other numbers.
    """

    def __init__(self, seed: int, block_size: int, device: torch.device) -> None:
        self.seed = seed
        self.block_size = block_size
        self.generator = torch.Generator(device)

    def normal(self, stream: Stream, start: int, stop: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Unit Gaussians for places start <= p < stop: float32 [stop - start, *shape]."""
        return self._draw(torch.randn, stream, start, stop, shape)

    def uniform(self, stream: Stream, start: int, stop: int) -> Tensor:
        """Uniform numbers in [0, 1) for places start <= p < stop: float32 [stop - start]."""
        return self._draw(torch.rand, stream, start, stop, ())

    def derived_seed(self, stream: Stream, index: int) -> int:
        """A seed below 2⁶³ for one purpose and one number."""
        state = np.random.SeedSequence(self.seed, spawn_key=(int(stream), index)).generate_state(1, np.uint64)
        return int(state[0] >> np.uint64(1))

    def _draw(self, sampler, stream: Stream, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
        size = self.block_size
        parts = []
        for block in range(start // size, -(-stop // size)):
            self.generator.manual_seed(self.derived_seed(stream, block))
            values = sampler((size, *shape), generator=self.generator, device=self.generator.device)
            parts.append(values[max(start - block * size, 0) : stop - block * size])
        return torch.cat(parts)
