"""Runs to draw with `edm2 plot`, and their records so far."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edm2.tools.figures.style import colors
from edm2.training import RunFolder, RunFolderError
from edm2.training.run.logging import Record, read_stats


@dataclass(frozen=True)
class PlottedRun:
    """Records of a run, and its name and colour in all figures."""

    name: str
    color: Any
    stats: list[Record]
    diagnostics: list[Record]


def open_runs(names_and_folders: Sequence[tuple[str, Path]]) -> list[PlottedRun]:
    """Read the records of runs, also of runs that are still training."""
    counts = Counter(name for name, _ in names_and_folders)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise RunFolderError(f"{counts[twice[0]]} runs are called {twice[0]!r}; tell them apart: NAME={twice[0]}")
    palette = colors(len(names_and_folders))
    return [_open_run(name, folder, color) for (name, folder), color in zip(names_and_folders, palette, strict=True)]


def _open_run(name: str, folder: Path, color: Any) -> PlottedRun:
    run = RunFolder(folder)
    if not run.config.is_file():
        raise RunFolderError(f"{folder}: holds no run (config.json is missing)")
    return PlottedRun(name, color, _records(folder / "stats.jsonl"), _records(folder / "diagnostics.jsonl"))


def _records(path: Path) -> list[Record]:
    return read_stats(path) if path.exists() else []


def name_and_folder(text: str) -> tuple[str, Path]:
    """ "NAME=FOLDER", or a folder whose own name serves."""
    name, equals, folder = text.partition("=")
    if equals and not Path(text).exists():
        return name, Path(folder)
    path = Path(text)
    return path.resolve().name, path
