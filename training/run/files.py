"""Small files of a run or a study: JSON that is complete or not there, records line by line, folders that are free."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edm2.post_hoc_ema.files import atomic_output
from edm2.training.data.archive.files import is_litter


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file that is complete or not there; its folder is created if missing."""
    with atomic_output(path) as temporary:
        Path(temporary).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def listed_differences(found: Sequence[tuple[str, Any, Any]]) -> str:
    """Phrase that names at most three settings (name, value there, value here), and the number of others."""
    shown = (f"{name} is {_brief(there)} there and {_brief(here)} here" for name, there, here in found[:3])
    return ", ".join(shown) + (f", and {len(found) - 3} more differ" if len(found) > 3 else "")


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def append_json_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a file of one JSON object per line; it is on the disk when this returns.

    Half a line, left by a process that was killed, is ended first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.write((b"" if _ends_a_line(file) else b"\n") + json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_a_line(file) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def is_inside(path: Path, folder: str | Path) -> bool:
    """True if a path lies in a folder, or is it, whatever links lead there; litter in it does not count."""
    path, folder = path.resolve(), Path(folder).resolve()
    inside = folder.is_dir() and path.is_relative_to(folder)
    return inside and not any(map(is_litter, path.relative_to(folder).parts))


def is_free(folder: Path) -> bool:
    """True if a folder is missing or empty; hidden files do not count, such as a lock or a half-written file."""
    return not folder.exists() or (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir()))
