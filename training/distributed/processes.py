"""The processes that torchrun started for one job, and stopping them together; without torchrun, a single one."""

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

Item = TypeVar("Item")

TIMEOUT = timedelta(days=1)
"""Time that processes wait for each other: some have more work than others. torchrun ends them all if one fails."""


SECONDS_OF_PATIENCE = 20.0
"""Time that a process waits for others to start before it says so."""


class OtherProcessError(RuntimeError):
    """Another process of this job has failed, so this one must end too."""


@contextmanager
def failures_of_others() -> Iterator[None]:
    """Say in plain words that another process has ended, where the libraries speak of sockets."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        if "timed out" in str(error).lower():
            raise OtherProcessError(
                "another process of this job does not answer: look at what it said last, and at its machine; "
                "--patience sets how long to wait for it"
            ) from error
        raise OtherProcessError("another process of this job has failed; what it said tells why") from error


@dataclass(frozen=True)
class Processes:
    """The processes of a job, as one of them sees them."""

    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    local_rank: int = 0
    """Number of this process on its machine."""
    local_count: int = 1
    """Number of processes on its machine."""

    @property
    def is_first(self) -> bool:
        """True if this process is the one that reports and puts results together."""
        return self.rank == 0

    def device(self, device: str) -> torch.device:
        """Device of this process: "cuda" becomes the GPU of its number, anything else stays."""
        return torch.device("cuda", self.local_rank) if device == "cuda" else torch.device(device)

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th item, beginning with number `rank`."""
        return items[self.rank :: self.count]

    def broadcast(self, value: Item) -> Item:
        """The first process's value, in all of them; anything that can be pickled."""
        if self.count == 1:
            return value
        values = [value]
        with failures_of_others():
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until all processes are here. Raises RuntimeError if one of them has ended."""
        if self.count > 1:
            with failures_of_others():
                distributed.barrier()


ONE_PROCESS = Processes()


class StopSignal:
    """Tells all processes in the same step that one of them wants to stop.

    The maximum over processes is taken in the background, on the CPU, while a step is made: the answer comes one step
    later, and neither the device nor the exchange of gradients waits for it.

    Args:
        timeout: Time to wait for another process: as long as a step may last.
    """

    def __init__(self, processes: Processes, timeout: timedelta) -> None:
        self._distributed = processes.count > 1
        self._group = distributed.new_group(backend="gloo", timeout=timeout) if self._distributed else None
        self._pending: tuple[distributed.Work, Tensor] | None = None

    def exchange(self, reason: int) -> int:
        """Send this process's wish, and return the largest of those sent a step ago; all call this once per step.

        Args:
            reason: 0 to go on, else the reason to stop: a positive number.
        """
        if not self._distributed:
            return reason
        largest = self.close()
        value = torch.tensor(int(reason))
        work = distributed.all_reduce(value, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = work, value
        return largest

    def close(self) -> int:
        """Wait for the exchange under way, if there is one; its largest number."""
        if self._pending is None:
            return 0
        work, value = self._pending
        work.wait()
        self._pending = None
        return int(value)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the other processes of this job, if torchrun started it (by the variables it sets), and part at the end.

    They only wait for each other, so they talk through gloo, whatever they compute on.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ:
        yield Processes()
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(f"{_PLACE} are set in the environment, but not {' and '.join(missing)}: {_ALONE}")
    with _saying_who_is_missing():
        store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
        fresh = _fresh(store, rank, count)
    distributed.init_process_group("gloo", store=fresh, rank=rank, world_size=count, timeout=TIMEOUT)
    try:
        local_rank, local_count = os.environ.get("LOCAL_RANK", "0"), os.environ.get("LOCAL_WORLD_SIZE", "1")
        yield Processes(rank, count, int(local_rank), int(local_count))
    finally:
        distributed.destroy_process_group()


_PLACE, _ALONE = "RANK and WORLD_SIZE", "start all processes by torchrun, or unset them to run alone"


@contextmanager
def _saying_who_is_missing() -> Iterator[None]:
    """Say on standard error, after some seconds of waiting, what this process waits for."""
    place = "process {RANK} of {WORLD_SIZE} waits for the others at {MASTER_ADDR}:{MASTER_PORT}".format(**os.environ)
    line = f"{_PLACE} are set in the environment: {place}; {_ALONE}"
    with calling_after(SECONDS_OF_PATIENCE, lambda: print(line, file=sys.stderr, flush=True)):
        yield


@contextmanager
def calling_after(seconds: float, function: Callable[[], object]) -> Iterator[None]:
    """Call a function after some time, in a thread of its own, unless the context ends before."""
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _fresh(store: distributed.Store, rank: int, count: int) -> distributed.Store:
    """Part of a store that no earlier processes of this job have written to.

    If torchrun starts processes again, they find addresses of those before in its store (seen with PyTorch 2.13), and
    the number of restarts is not the same on all machines. So each process says hello with a name of its own; the first
    one answers every hello with the name of this attempt, until all others have acknowledged it.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello {rank}", own)
        attempt = store.get(f"answer to {own}").decode()  # waits for it
        store.set(f"{attempt} acknowledged by {rank}", "")
        return distributed.PrefixStore(attempt, store)
    answered = set()
    while not all(store.check([f"{own} acknowledged by {other}"]) for other in range(1, count)):
        for hello in (f"hello {other}" for other in range(1, count)):
            if store.check([hello]) and (name := store.get(hello).decode()) not in answered:
                store.set(f"answer to {name}", own)
                answered.add(name)
        time.sleep(0.01)
    return distributed.PrefixStore(own, store)
