"""Speed of a run, measured on its first steps, and the time that the rest will take."""

import time
from collections.abc import Callable
from typing import NamedTuple

STEPS_TO_SKIP = 3
"""The first steps compile, choose convolution algorithms and fill the read-ahead of the data."""
FEW_STEPS, MANY_STEPS = 10, 50
SHORT_SECONDS, LONG_SECONDS = 10.0, 60.0


class Speedometer:
    """Times steps until their number and their time make a fair measurement.

    Ten steps and ten seconds are enough, and so are fifty steps, or a minute.

    Args:
        batch_size: Images per step.
        wait: Waits until the device is idle.
        clock: Seconds since some moment.
    """

    def __init__(
        self, batch_size: int, wait: Callable[[], object], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.batch_size = batch_size
        self.wait = wait
        self.clock = clock
        self.steps = -STEPS_TO_SKIP
        self.start = 0.0
        self.done = False

    def step_done(self) -> float | None:
        """Count a step; images per second at the step that completes the measurement, else None."""
        if self.done:
            return None
        self.steps += 1
        if self.steps == 0:
            self.wait()
            self.start = self.clock()
        if self.steps <= 0 or not self._is_fair(self.clock() - self.start):
            return None
        self.wait()
        self.done = True
        return self.steps * self.batch_size / (self.clock() - self.start)

    def _is_fair(self, seconds: float) -> bool:
        enough = self.steps >= FEW_STEPS and seconds >= SHORT_SECONDS
        return enough or self.steps >= MANY_STEPS or seconds >= LONG_SECONDS


class SpeedMeasurement(NamedTuple):
    """Measurements of a few steps."""

    images_per_second: float
    """All devices together."""
    peak_memory: int
    """Bytes: allocated on the GPU where there is one, else resident memory of this process."""


def time_text(seconds: float) -> str:
    """A time for people, to two or three digits: "50 seconds", "7.5 hours", "136 days"."""
    for unit, length, enough in (("second", 1, 120), ("minute", 60, 120), ("hour", 3600, 48)):
        if seconds < enough * length:
            return _count(seconds / length, unit)
    return _count(seconds / 86_400, "day")


def _count(number: float, unit: str) -> str:
    digits = f"{number:,.0f}" if number >= 9.95 or unit == "second" else f"{number:.1f}".removesuffix(".0")
    return f"{digits} {unit}" + ("" if digits == "1" else "s")


def with_unit(value: float, unit: str) -> str:
    """Three digits and a prefix: 1.52 GB."""
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"]
    thousands = min((len(f"{value:.0f}") - 1) // 3, len(prefixes) - 1)
    return f"{value / 1000**thousands:.3g} {prefixes[thousands]}{unit}"
