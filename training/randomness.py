"""Random numbers that belong to an image's position in the run.

Position p is that of the p-th image that the run visits, counted from zero. What an image meets there (noise level,
noise, label dropout, mirroring) is drawn for blocks of consecutive positions, each from a generator seeded by
(seed, stream, block). Neither the number of devices, nor the split into micro-batches, nor a restart changes it.
"""

import hashlib
from enum import IntEnum, unique

import numpy as np
import torch
from torch import Tensor

NAMED = 1 << 31
"""First number of the keys of streams that have a name; those of `Stream` are smaller."""


@unique
class Stream(IntEnum):
    """Purposes of random numbers; the streams are independent."""

    SIGMA = 0
    NOISE = 1
    LABEL_DROPOUT = 2
    XFLIP = 3
    DROPOUT = 4
    MOMENTS = 5


class PositionRandom:
    """Random numbers by position.

    Args:
        block_size: Consecutive positions drawn together.
        device: Device to draw on; another kind of device draws other numbers.
    """

    def __init__(self, seed: int, block_size: int, device: torch.device) -> None:
        self.seed = seed
        self.block_size = block_size
        self.generator = torch.Generator(device)

    def normal(self, stream: Stream | str, start: int, stop: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Unit Gaussians for positions start <= p < stop: float32 [stop - start, *shape]."""
        return self._draw(torch.randn, stream, start, stop, shape)

    def uniform(self, stream: Stream | str, start: int, stop: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform numbers in [0, 1) for positions start <= p < stop: float32 [stop - start, *shape]."""
        return self._draw(torch.rand, stream, start, stop, shape)

    def derived_seed(self, stream: Stream | str, index: int) -> int:
        """A seed below 2⁶³ for one purpose and one number."""
        key = (int(stream),) if isinstance(stream, Stream) else _key(stream)
        state = np.random.SeedSequence(self.seed, spawn_key=(*key, index)).generate_state(1, np.uint64)
        return int(state[0] >> np.uint64(1))

    def _draw(self, sampler, stream: Stream | str, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
        size = self.block_size
        parts = []
        for block in range(start // size, -(-stop // size)):
            self.generator.manual_seed(self.derived_seed(stream, block))
            values = sampler((size, *shape), generator=self.generator, device=self.generator.device)
            parts.append(values[max(start - block * size, 0) : stop - block * size])
        return torch.cat(parts)


def _key(name: str) -> tuple[int, int]:
    """Numbers that stand for a name, the same in every process."""
    return NAMED, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
