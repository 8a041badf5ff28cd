"""The processes that torchrun started for one job; without torchrun, this one alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

Item = TypeVar("Item")

PATIENCE = timedelta(days=1)
"""How long processes wait for each other: some have more work than others. torchrun ends them all if one fails."""


class OtherProcessError(RuntimeError):
    """Another process of this job has failed, so this one must end too."""


@contextmanager
def failures_of_others() -> Iterator[None]:
    """Say in plain words that another process has ended. The libraries speak of sockets.

    Raises:
        OtherProcessError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise OtherProcessError("another process of this job has failed; what it said tells why") from error


@dataclass(frozen=True)
class Processes:
    """The processes of a job, as one of them sees them."""

    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    """How many there are."""
    local_rank: int = 0
    """Number of this process on its machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that talks and puts results together."""
        return self.rank == 0

    def device(self, device: str) -> torch.device:
        """The device of this process: "cuda" becomes the GPU of its number, anything else stays."""
        return torch.device("cuda", self.local_rank) if device == "cuda" else torch.device(device)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th item, beginning with number `rank`."""
        return items[self.rank :: self.count]

    def agreed(self, value: Item) -> Item:
        """The first process's value, in all of them; whatever can be pickled."""
        if self.count == 1:
            return value
        values = [value]
        with failures_of_others():
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until all processes are here. Raises RuntimeError if one of them has ended."""
        if self.count > 1:
            with failures_of_others():
                distributed.barrier()


ALONE = Processes()
"""A job of one process."""


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the other processes of this job, if torchrun started it (by the variables it sets), and part at the end.

    They only wait for each other, so they talk through gloo, whatever they compute on.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield Processes()
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        yield Processes(distributed.get_rank(), distributed.get_world_size(), local_rank)
    finally:
        distributed.destroy_process_group()
