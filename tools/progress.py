"""Progress of long commands: a bar on a terminal, a line every half minute in a log."""

import sys
import threading
import time
from typing import Any

import click
from tqdm import tqdm

from edm2.training.run.speed import time_text

SECONDS = 30.0
"""Time between lines in a log."""


class ProgressLines:
    """Lines on standard error, one each half minute, in place of the bar that tqdm draws on a terminal."""

    def __init__(self, total: int | None, unit: str, hidden: bool = False) -> None:
        self.total = total
        self.unit = unit
        self.hidden = hidden
        self.n = 0
        self._start = time.monotonic()
        self._first = 0  # done in an instant, as it was known
        self._done = threading.Event()

    def __enter__(self) -> "ProgressLines":
        if not self.hidden:
            threading.Thread(target=self._print, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Print no more."""
        self._done.set()

    def update(self, count: int = 1) -> None:
        """Count."""
        self.n += count
        if time.monotonic() - self._start < 0.1:
            self._first = self.n

    def _print(self) -> None:
        while not self._done.wait(SECONDS):
            click.echo(self._line(time.monotonic() - self._start), err=True)

    def set_description(self, text: str) -> None:
        """Print what is being done now, after a long time."""
        if not self.hidden and time.monotonic() - self._start >= SECONDS:
            click.echo(text, err=True)

    def _line(self, seconds: float) -> str:
        if not self.total:
            return f"{self.n:,} {self.unit}"
        rate = (self.n - self._first) / seconds
        left = f", about {time_text((self.total - self.n) / rate)} left" if rate > 0 and self.n < self.total else ""
        return f"{self.n:,} of {self.total:,} {self.unit} ({self.n / self.total:.0%}){left}"


def progress_bar(total: int | None = None, unit: str = "images", hidden: bool = False) -> "tqdm | ProgressLines":
    """A bar that vanishes when it is done, or lines where standard error is no terminal; nothing if `hidden`."""
    if hidden or not sys.stderr.isatty():
        return ProgressLines(total, unit, hidden)
    return tqdm(total=total, unit=f" {unit}", unit_scale=unit != "images", leave=False, dynamic_ncols=True)
