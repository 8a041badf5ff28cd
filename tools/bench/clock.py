"""How long something takes: by the GPU's own events where there is one, else by the processor or the wall.

On a GPU a repeat is enclosed by two events, and the host waits once, at its end. On the CPU both the wall and the
processor time of this process are noted. With one thread the processor's counts, because others at work on the machine
do not change it much; with several the wall's does, because threads that wait for each other use the processor too.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

Work = Callable[[], object]

SHORTEST = 0.02
"""Seconds that a repeat lasts at least: shorter work is done several times."""


class Duration(NamedTuple):
    """Of one repeat, per time that the work was done; in seconds."""

    seconds: float
    """By the clock that counts."""
    wall: float
    processor: float
    """Of all threads of this process."""


@dataclass(frozen=True)
class Timing:
    """Of several repeats; in seconds."""

    seconds: float
    """Median by the clock that counts."""
    low: float
    """Fastest."""
    high: float
    """Slowest."""
    wall: float
    """Median of the wall's clock."""
    processor: float
    """Median of the processor time of all threads of this process."""

    @classmethod
    def of(cls, durations: list[Duration]) -> "Timing":
        """Medians and extremes."""
        seconds, walls, processors = zip(*durations, strict=True)
        median = statistics.median
        return cls(median(seconds), min(seconds), max(seconds), median(walls), median(processors))


class Clock:
    """Times work on a device.

    Args:
        device: Where the work is done.
        repeats: Measurements of which the median counts.
        warmup: Times that the work is done before.

    Attributes:
        kind: Which clock counts, for people.
    """

    def __init__(self, device: torch.device, repeats: int = 9, warmup: int = 2) -> None:
        self.device = device
        self.repeats = repeats
        self.warmup = warmup
        self.kind = "processor time" if torch.get_num_threads() == 1 else "wall time"
        if device.type != "cpu":
            self.kind = "CUDA events" if device.type == "cuda" else "wall time"

    def time(self, work: Work, before: Work | None = None) -> Timing:
        """Median over repeats; `before` prepares each time that the work is done, off the clock."""
        calls = self._get_ready(work, before)
        return Timing.of([self.once(work, before, calls) for _ in range(self.repeats)])

    def alternate(self, works: Mapping[str, Work]) -> dict[str, list[Duration]]:
        """Durations of several works that take turns, in one order and then in the other.

        In a round, the machine is about as fast for each of them.
        """
        calls = {name: self._get_ready(work, None) for name, work in works.items()}
        durations: dict[str, list[Duration]] = {name: [] for name in works}
        for turn in range(self.repeats):
            for name in list(works)[:: 1 if turn % 2 == 0 else -1]:
                durations[name].append(self.once(works[name], None, calls[name]))
        return durations

    def once(self, work: Work, before: Work | None = None, calls: int = 1) -> Duration:
        """One repeat."""
        total = [0.0, 0.0, 0.0]
        if before is None:
            total = list(self._measure(lambda: [work() for _ in range(calls)]))
        else:
            for _ in range(calls):
                before()
                total = [sum(pair) for pair in zip(total, self._measure(work), strict=True)]
        return Duration(*(seconds / calls for seconds in total))

    def wait(self) -> None:
        """Until the device has done all that it was given to do."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()

    def _get_ready(self, work: Work, before: Work | None) -> int:
        """Warm up; how often the work has to be done in a repeat to last long enough."""
        for _ in range(self.warmup):
            self.once(work, before)
        wall = self.once(work, before).wall
        return min(max(round(SHORTEST / max(wall, 1e-9)), 1), 1000)

    def _measure(self, work: Work) -> Duration:
        if self.device.type == "cuda":
            return self._measure_by_events(work)
        self.wait()
        wall, processor = time.perf_counter(), time.process_time()
        work()
        self.wait()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        return Duration(processor if self.kind == "processor time" else wall, wall, processor)

    def _measure_by_events(self, work: Work) -> Duration:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.wait()
        wall, processor = time.perf_counter(), time.process_time()
        start.record()
        work()
        end.record()
        processor = time.process_time() - processor  # of the host, which then only waits
        end.synchronize()
        return Duration(start.elapsed_time(end) / 1000, time.perf_counter() - wall, processor)
