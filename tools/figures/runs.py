"""Runs to draw with `edm2 plot`, and their records so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

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


def folders_by_name(texts: Sequence[str]) -> dict[str, Path]:
    """Parse runs from the command line: "NAME=FOLDER", or a folder whose own name serves.

    Raises:
        click.ClickException: a folder does not exist, or two runs have the same name.
    """
    folders: dict[str, Path] = {}
    for text in texts:
        name, equals, after = text.partition("=")
        path = Path(after if (named := equals and not Path(text).exists()) else text)
        if not path.is_dir():
            raise click.ClickException(f"{path}: no such folder; give the folder of a run")
        name = name if named else path.resolve().name
        if name in folders:
            raise click.UsageError(f"two runs have the same name, {name}; tell them apart: NAME=RUN")
        folders[name] = path
    return folders


def open_runs(folders: Mapping[str, Path]) -> list[PlottedRun]:
    """Read the records of runs, also of runs that are still training."""
    palette = colors(len(folders))
    return [_open_run(name, folder, color) for (name, folder), color in zip(folders.items(), palette, strict=True)]


def _open_run(name: str, folder: Path, color: Any) -> PlottedRun:
    run = RunFolder(folder)
    if not run.config.is_file():
        raise RunFolderError(f"{folder}: holds no run (config.json is missing)")
    return PlottedRun(name, color, _records(folder / "stats.jsonl"), _records(folder / "diagnostics.jsonl"))


def _records(path: Path) -> list[Record]:
    return read_stats(path) if path.exists() else []
