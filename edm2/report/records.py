"""A run's own records: configuration, reports, diagnostics, in whatever state they are."""

from dataclasses import dataclass
from pathlib import Path

from edm2.training import RunFolder, TrainingConfig, read_run_config
from edm2.training.run.logging import Record, parse_record


@dataclass(frozen=True)
class RunRecords:
    """Records of a run so far."""

    name: str
    """Name on the page."""
    folder: RunFolder
    config: TrainingConfig
    stats: list[Record]
    """Readable records of stats.jsonl."""
    diagnostics: list[Record]
    """Readable records of diagnostics.jsonl."""
    damaged: int
    """Lines of both files that cannot be read."""

    @property
    def images_seen(self) -> int:
        """Images seen at the last report."""
        return self.stats[-1]["images_seen"] if self.stats else 0


def read_records(name: str, folder: Path) -> RunRecords:
    """Read what a run has written so far, also while it trains.

    Raises:
        RunFolderError: the folder holds no run, or its configuration is damaged.
    """
    config = read_run_config(folder)
    stats, bad_stats = _readable(folder / "stats.jsonl")
    diagnostics, bad_diagnostics = _readable(folder / "diagnostics.jsonl")
    return RunRecords(name, RunFolder(folder), config, stats, diagnostics, bad_stats + bad_diagnostics)


def _readable(path: Path) -> tuple[list[Record], int]:
    """Return the readable records of a file and the number of other lines; an unfinished last line is no line yet."""
    records, damaged = [], 0
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_record(path, number, line))
        except ValueError:
            damaged += 1
    return records, damaged
