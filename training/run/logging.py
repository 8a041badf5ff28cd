"""Reports of a run: a status line, stats.jsonl, diagnostics.jsonl and, when installed, TensorBoard."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edm2.post_hoc_ema import atomic_output
from edm2.training.run.files import append_json_line
from edm2.training.run.speed import time_text

Record = dict[str, Any]


RISEN = 1.02
"""Held-out error over its own minimum from which it counts as rising; the noise of 100 images is below 1 %."""

Measured = list[tuple[int, float]]
"""Pairs of images seen and a number that was measured then."""


def risen_since(measured: Measured) -> tuple[int, float] | None:
    """Time and value of the minimum, if the last two measurements are more than 2 % above it; None if not."""
    if len(measured) < 3:
        return None
    at, lowest = min(measured, key=lambda pair: pair[1])
    return (at, lowest) if min(value for _, value in measured[-2:]) > RISEN * lowest else None


class StatusLine:
    """A tqdm bar on a terminal, a plain line per report in a log.

    Args:
        held_out: Errors on held-out images of before.
    """

    def __init__(self, duration: int, images_seen: int, held_out: Measured) -> None:
        self.duration = duration
        self.held_out = held_out
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=duration, initial=images_seen, unit="img", unit_scale=True, dynamic_ncols=True)

    def advance(self, images: int) -> None:
        if self.bar is not None:
            self.bar.update(images)

    def report(self, record: Record) -> None:
        """Show a record's headline."""
        headline = f"{self._errors(record)}  lr {record['lr']:.2e}  grad {record['grad_norm']:.3g}"
        if self.bar is not None:
            self.bar.set_postfix_str(headline)
            return
        seen, rate = record["images_seen"], record["images_per_second"]
        left = f"{time_text((self.duration - seen) / rate) if rate else '?'} left" if seen < self.duration else "done"
        percent = f"{100 * seen / self.duration:5.1f}%"
        self.print(f"{percent}  {seen:>10,} images  {headline}  {rate:,.0f} img/s  {left}")

    def _errors(self, record: Record) -> str:
        """Error in training and, as it was last measured, on held-out images: 1 untrained, 0 perfect."""
        shown = f"error {record['error']:.4f}" if "error" in record else f"loss {record['loss']:.4g}"
        self.held_out += numbers_of([record], "holdout_error")
        if self.held_out:
            shown += f"  held out {self.held_out[-1][1]:.4f}"
        if (turn := risen_since(self.held_out)) is not None:
            shown += f" ({turn[1]:.4f} at {turn[0]:,})"
        return shown

    def print(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if self.bar is None:
            print(text, flush=True)
        else:
            tqdm.write(text)

    def close(self) -> None:
        """Leave the bar behind."""
        if self.bar is not None:
            self.bar.close()


class StatsFile:
    """One JSON object per record, in the order of images seen, without gaps or repeats.

    stats.jsonl and diagnostics.jsonl are such files.

    Args:
        images_seen: Images seen so far; records of a later time, left by a run that was killed after its last
            checkpoint, are dropped because they are about to be made again.
    """

    def __init__(self, path: Path, images_seen: int) -> None:
        self.path = path
        if path.exists():
            kept = [record for record in read_stats(path) if record["images_seen"] <= images_seen]
            with atomic_output(path) as temporary:
                Path(temporary).write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def read(self) -> list[Record]:
        """Records so far."""
        return read_stats(self.path) if self.path.exists() else []

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns."""
        append_json_line(self.path, record)


def numbers_of(records: Iterable[Record], key: str) -> Measured:
    """A number of the records that have it, with the images seen then."""
    return [(record["images_seen"], record[key]) for record in records if key in record]


def read_stats(path: Path) -> list[Record]:
    """Records of a stats.jsonl; an unfinished last line, left by a killed run, is ignored."""
    *lines, _ = path.read_bytes().split(b"\n")  # a line is finished when its end is there
    return [parse_record(path, number, line) for number, line in enumerate(lines, start=1)]


def parse_record(path: Path, number: int, line: bytes) -> Record:
    """Record in a line of a file, by its number from one. Raises ValueError if the line is damaged."""
    try:
        record = json.loads(line)
        record["images_seen"]  # what all readers look at
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: line {number} is damaged; mend it or remove it") from None
    return record


class TensorBoard:
    """TensorBoard events of every number in a record, if the package is installed; else nothing."""

    def __init__(self, folder: Path, images_seen: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.writer = None
            print("No TensorBoard events: pip install 'edm2[tensorboard]'", file=sys.stderr)
        else:
            self.writer = SummaryWriter(str(folder), purge_step=images_seen)

    def append(self, record: Record) -> None:
        """Write the record's numbers at its images seen."""
        if self.writer is None:
            return
        for name, value in _numbers(record):
            if name != "images_seen":
                self.writer.add_scalar(name, value, record["images_seen"])
        self.writer.flush()


def _numbers(record: Record, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers of a record with their names; those of a dict inside it as "activations/max/Enc 8x8"."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


class Monitor:
    """Outputs of a run's reports."""

    def __init__(self, folder: Path, duration: int, images_seen: int) -> None:
        self.stats = StatsFile(folder / "stats.jsonl", images_seen)
        self.status = StatusLine(duration, images_seen, numbers_of(self.stats.read(), "holdout_error"))
        self.diagnostics = StatsFile(folder / "diagnostics.jsonl", images_seen)
        self.tensorboard = TensorBoard(folder, images_seen)

    def report(self, record: Record) -> None:
        self.stats.append(record)
        self.tensorboard.append(record)
        self.status.report(record)

    def report_diagnostics(self, record: Record) -> None:
        """Store a measurement of `edm2.training.diagnostics`."""
        self.diagnostics.append(record)
        self.tensorboard.append(record)
