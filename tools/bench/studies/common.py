"""Helpers of the studies: medians, measurements in new processes, CSV files. Linux only."""

import csv
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from edm2.post_hoc_ema import atomic_output


def medians(rows: Iterable[Sequence[float]]) -> list[float]:
    """Median of each column."""
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def in_new_process(work: Callable[..., float | None], *arguments: object) -> tuple[float, float]:
    """Seconds that work takes in a new process, unless it returns them itself, and bytes by which peak memory grows."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, work, *arguments).result()


def _measure(work: Callable[..., float | None], *arguments: object) -> tuple[float, float]:
    before, start = memory("VmHWM"), time.perf_counter()
    seconds = work(*arguments)
    return seconds or time.perf_counter() - start, memory("VmHWM") - before


def memory(entry: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak. getrusage would begin with the peak of the parent."""
    return 1024 * int(re.search(entry + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table, completely or not at all."""
    with atomic_output(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
