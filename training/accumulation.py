"""Gradients of one step from several forward passes: micro-batches, and smaller ones when memory runs out."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from edm2.training.data.batches import Batch
from edm2.training.distributed.strategies import Strategy

Means = dict[str, Tensor]
"""Numbers of a step by name, 0-dimensional: contributions of its parts add up to the mean over this rank's images."""


class Part(NamedTuple):
    """Images that go through the network at once."""

    position: int
    """Position in the run of the first one."""
    batch: Batch


class GradientAccumulation:
    """Splits the images that one rank sees of a step, and adds up the gradients of the parts.

    Args:
        images_per_forward: Images of a part, at most.
        optimizer: Owner of the gradients.
        strategy: Exchanges gradients with the other ranks, with the last part.
    """

    def __init__(self, images_per_forward: int, optimizer: torch.optim.Optimizer, strategy: Strategy) -> None:
        self.images_per_forward = images_per_forward
        self.optimizer = optimizer
        self.strategy = strategy

    def split(self, batches: Sequence[Batch], position: int) -> list[Part]:
        """Parts of `batches`, the first image of which has this position in the run."""
        parts = []
        for batch in batches:
            for start in range(0, len(batch.images), self.images_per_forward):
                parts.append(Part(position + start, batch.slice(start, start + self.images_per_forward)))
            position += len(batch.images)
        return parts

    def __call__(self, batches: Sequence[Batch], position: int, backward: Callable[[Part], Means]) -> Means:
        """Call `backward` for each part. If memory runs out, begin anew with parts of half the size.

        Raises:
            torch.OutOfMemoryError: one image is too many already, or other ranks wait for a gradient of this part.
        """
        while True:
            try:
                return self._add_up(self.split(batches, position), backward)
            except torch.OutOfMemoryError:
                if self.strategy.processes.count > 1 or self.images_per_forward == 1:
                    raise
            self._halve()  # outside of the handler, where the traceback no longer keeps activations alive

    def _add_up(self, parts: Sequence[Part], backward: Callable[[Part], Means]) -> Means:
        self.optimizer.zero_grad(set_to_none=True)
        sums: Means = {}
        for i, part in enumerate(parts):
            with self.strategy.accumulating() if i + 1 < len(parts) else nullcontext():
                for name, value in backward(part).items():
                    sums[name] = sums[name] + value if name in sums else value
        return sums

    def _halve(self) -> None:
        self.images_per_forward = -(-self.images_per_forward // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = self.images_per_forward
        tqdm.write(f"out of memory: from now on {size} images per forward pass; lower --micro-batch to begin so")
