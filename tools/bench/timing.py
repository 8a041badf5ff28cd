"""Time and memory that work takes; several works take turns, so that a busy machine slows down each of them alike.

On the CPU with one thread the processor time of this process counts, which other programs on the machine hardly change.
With several threads, which use the processor while they wait for each other, and on a GPU the wall clock counts; the
host waits for the device before and after each repeat.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from edm2.planning.costs import LiveTensors

Work = Callable[[], object]

SHORTEST = 0.02
"""Least seconds that a repeat lasts; shorter work is done several times."""


class Duration(NamedTuple):
    """Seconds that work takes once, measured in one repeat."""

    seconds: float
    """Seconds by the clock that counts."""
    wall: float
    processor: float
    """Processor time of all threads of this process."""


@dataclass(frozen=True)
class Timing:
    """Seconds that work takes, over several repeats. Field names are keys of the JSON of `edm2 bench`."""

    seconds: float
    """Median by the clock that counts."""
    low: float
    """Fastest."""
    high: float
    """Slowest."""
    wall: float
    """Median of the wall clock."""
    processor: float
    """Median of the processor time."""

    @classmethod
    def of(cls, durations: list[Duration]) -> "Timing":
        """Summarize repeats."""
        seconds, walls, processors = zip(*durations, strict=True)
        median = statistics.median
        return cls(median(seconds), min(seconds), max(seconds), median(walls), median(processors))


class Clock:
    """Times work on a device.

    Args:
        device: Device that does the work.
        repeats: Number of measurements.
        warmup: Number of times that the work is done before.

    Attributes:
        kind: Name of the clock that counts.
    """

    def __init__(self, device: torch.device, repeats: int = 9, warmup: int = 2) -> None:
        self.device = device
        self.repeats = repeats
        self.warmup = warmup
        on_one_thread = device.type == "cpu" and torch.get_num_threads() == 1
        self.kind = "processor time" if on_one_thread else "wall time"

    def time(self, work: Work, before: Work | None = None) -> Timing:
        """Time one work; `before` prepares each time that it is done, off the clock."""
        return Timing.of(self.by_turns({"": work}, before)[""])

    def by_turns(self, works: Mapping[str, Work], before: Work | None = None) -> dict[str, list[Duration]]:
        """Time works that take turns, in one order and then in the other: entry i of each is of the same round."""
        calls = {name: self._calls_per_repeat(work, before) for name, work in works.items()}
        durations: dict[str, list[Duration]] = {name: [] for name in works}
        for turn in range(self.repeats):
            for name in list(works)[:: 1 if turn % 2 == 0 else -1]:
                durations[name].append(self._repeat(works[name], before, calls[name]))
        return durations

    def _calls_per_repeat(self, work: Work, before: Work | None) -> int:
        """Warm up, and count how often the work has to be done to last long enough."""
        for _ in range(self.warmup):
            self._repeat(work, before, 1)
        wall = self._repeat(work, before, 1).wall
        return min(max(round(SHORTEST / max(wall, 1e-9)), 1), 1000)

    def _repeat(self, work: Work, before: Work | None, calls: int) -> Duration:
        if before is None:
            durations = [self._measure(lambda: [work() for _ in range(calls)])]
        else:
            durations = []
            for _ in range(calls):
                before()
                durations.append(self._measure(work))
        return Duration(*(sum(seconds) / calls for seconds in zip(*durations, strict=True)))

    def _measure(self, work: Work) -> Duration:
        self._synchronize()
        wall, processor = time.perf_counter(), time.process_time()
        work()
        self._synchronize()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        return Duration(processor if self.kind == "processor time" else wall, wall, processor)

    def _synchronize(self) -> None:
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()


def peak_memory(work: Work, device: torch.device) -> int:
    """Peak bytes that work adds to what is allocated.

    On a GPU the allocator counts; elsewhere the tensors alive during an additional run of the work are added up.
    """
    if device.type != "cuda":
        with LiveTensors() as live:
            work()
        return live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
