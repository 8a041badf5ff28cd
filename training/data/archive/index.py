"""Index of a large ZIP: its directory and labels in a file beside it, so that opening it again takes no time.

Reading the directory of a million members and their labels takes half a minute and a gigabyte of memory. The index is a
safetensors file with the result. It is nothing but a copy: if it is missing, incomplete, or of another state of the
ZIP, it is made anew.
"""

import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edm2.post_hoc_ema import atomic_output
from edm2.post_hoc_ema.files import parse_json
from edm2.training.data.archive.catalog import Catalog, open_files, read_catalog
from edm2.training.data.archive.files import SUFFIXES, Files, retry_from
from edm2.training.data.archive.zip_files import Members, Names, ZipFiles

LARGE = 10_000
"""Number of members above which an index pays: a smaller ZIP is listed in a tenth of a second."""

VERSION = 3
"""Version of the arrays below; an index of another version is made anew."""

COLUMNS = ("offset", "packed", "size", "crc", "method", "flags")
"""Arrays of `Members` beside the names."""

FACTS = ("class_names", "latents", "pixels", "conditions", "condition_names", "notes")
"""Entries of `Catalog` that are stored as JSON."""

TAIL = 1 << 16
"""Bytes at the end of a ZIP, the last of its directory, that have to be the same."""


def open_archive(path: Path, suffixes: Sequence[str] = SUFFIXES, labelled: bool = True) -> tuple[Files, Catalog]:
    """Open a folder or a ZIP: its files, and the catalog of the images among them, as `read_catalog` makes it.

    Raises:
        DatasetError: The path does not exist, or holds no usable dataset.
    """
    files = open_files(path)
    if not isinstance(files, ZipFiles) or suffixes != SUFFIXES or not labelled:
        return files, read_catalog(files, suffixes, labelled)
    stamp = _stamp(path)
    for index in _paths(path):
        if known := _load(index, stamp):
            members, catalog = known
            return ZipFiles(path, members), catalog
    catalog = read_catalog(files)
    if len(files.members.names) > LARGE:
        _save(path, stamp, files.members, catalog)
    return files, catalog


def _stamp(path: Path) -> str:
    """Text that changes with the ZIP: its size, time, and a checksum of the end of the directory."""

    def read() -> str:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            file.seek(max(0, stat.st_size - TAIL))
            return json.dumps([VERSION, stat.st_size, stat.st_mtime_ns, zlib.crc32(file.read(TAIL))])

    return retry_from(path, read)


def _paths(path: Path) -> Iterator[Path]:
    """Paths at which the index of a ZIP may be: beside it, else in the user's cache folder."""
    path = path.resolve()
    yield path.with_name(f".{path.name}.index")
    with suppress(RuntimeError):  # the user has no home folder
        yield _cache_folder() / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.index"


def _cache_folder() -> Path:
    if base := os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA"):
        return Path(base) / "edm2"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "edm2"


# ----------------------------------------------------------------------------------------------------------------------
# The file


def _save(path: Path, stamp: str, members: Members, catalog: Catalog) -> None:
    """Write the index to the first path that can be written to, if any."""
    arrays = _to_arrays(members, catalog)
    metadata = {"stamp": stamp, "facts": json.dumps({name: getattr(catalog, name) for name in FACTS}, sort_keys=True)}
    for index in _paths(path):
        with suppress(OSError, SafetensorError), atomic_output(index) as temporary:
            save_file(arrays, temporary, metadata)
            return


def _load(index: Path, stamp: str) -> tuple[Members, Catalog] | None:
    """Contents of an index, or None if it is missing, incomplete, or of another ZIP."""
    if not index.exists():
        return None
    try:
        with safe_open(index, framework="numpy") as file:
            metadata = file.metadata()
            if metadata["stamp"] != stamp:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        return _from_arrays(arrays, **parse_json(metadata["facts"]))
    except Exception:  # damage can raise almost anything
        return None


def _to_arrays(members: Members, catalog: Catalog) -> dict[str, np.ndarray]:
    row = {name: row for row, name in enumerate(members.names)}
    return {
        **{column: getattr(members, column) for column in COLUMNS},
        "names": np.frombuffer(members.names.block, dtype=np.uint8),
        "ends": members.names.ends,
        "rows": np.array([row[name] for name in catalog.names], dtype=np.int64),
        "labels": catalog.labels,
    }


def _from_arrays(
    arrays: dict[str, np.ndarray], class_names: list[str], condition_names: list[str], notes: list[str], **entries: Any
) -> tuple[Members, Catalog]:
    """Inverse of `_to_arrays`."""
    names = Names.laid_end_to_end(arrays["names"].tobytes(), arrays["ends"])
    columns: dict[str, Any] = {column: arrays[column] for column in COLUMNS}
    members = Members(names, **columns)
    entries |= {"condition_names": tuple(condition_names), "notes": tuple(notes)}
    return members, Catalog(names.take(arrays["rows"]), arrays["labels"], tuple(class_names), **entries)
