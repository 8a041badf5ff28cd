"""Snapshots in memory, as the protocol of reconstruction wants them."""

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class MemorySnapshot:
    """The smallest reader that satisfies the protocol, without the optional `buffers`; counts what is read."""

    images_seen: int
    sigma_rel: float
    tensors: dict[str, Tensor]
    reads: Counter = field(default_factory=Counter)

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        self.reads[name] += 1
        return self.tensors[name]
