"""Entries of a dataset's dataset.json beyond labels, written without touching the images."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from edm2.datasets.measuring import Statistics
from edm2.datasets.parts import member
from edm2.post_hoc_ema import atomic_output
from edm2.training import Dataset, open_dataset
from edm2.training.data.archive.catalog import open_files, read_description
from edm2.training.data.archive.files import DESCRIPTION
from edm2.training.data.archive.index import open_archive
from edm2.training.data.archive.zip_files import stored_name
from edm2.training.data.dataset import CONTENTS, ArchiveDataset


def check_writable(path: str | Path) -> None:
    """Check before measuring, which takes long, that `write_entry` can succeed.

    Raises:
        DatasetError: The path does not exist.
        ValueError: It is neither a file nor a folder.
        OSError: Not allowed to write there, or a ZIP has no room for a second copy beside it.
    """
    if path == "digits":
        raise ValueError("digits comes with scikit-learn and cannot be written to; choose --no-write")
    path = open_files(Path(path)).path.resolve()
    folder = path if path.is_dir() else path.parent
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: cannot be written to; choose --no-write, or copy the dataset elsewhere")
    if path.is_file() and (free := shutil.disk_usage(folder).free) < path.stat().st_size:
        raise OSError(
            f"{path}: {path.stat().st_size / 1e9:.1f} GB needed for a second copy while it is written, but only "
            f"{free / 1e9:.1f} GB are free; make room, or choose --no-write"
        )


def open_to_measure(path: str | Path) -> Dataset:
    """Open a dataset without its stored statistics, which may be wrong. Raises what `open_dataset` raises."""
    if path == "digits":
        return open_dataset(path)
    files, catalog = open_archive(Path(path))
    latents = catalog.latents if isinstance(catalog.latents, dict) else None
    return ArchiveDataset(files, replace(catalog, latents=latents, pixels=None))


def store_statistics(path: str | Path, dataset: Dataset, statistics: Statistics) -> None:
    """Store mean and standard deviation for training; entries about the VAE stay. See `write_entry`."""
    if 0 in statistics.std:
        raise ValueError(
            f"{path}: channel {statistics.std.index(0)} never varies, which training cannot scale; nothing is stored"
        )
    measured = statistics.to_json() | {CONTENTS: dataset.fingerprint()}
    if dataset.kind == "pixels":
        write_entry(path, "pixels", measured)
    else:
        write_entry(path, "latents", {**(dataset.latents or {}), **measured})


def write_entry(path: str | Path, key: str, entry: dict[str, Any]) -> None:
    """Set one entry of the dataset.json of a folder or ZIP, which is made if there is none; labels stay where they are.

    The dataset is the old one or the new one, at every moment. A ZIP needs the space of a second copy meanwhile.

    Raises:
        DatasetError: The dataset cannot be used.
        OSError: It cannot be written, for instance because the disk is full; then it is as it was.
    """
    files = open_files(Path(path))
    known = read_description(files) if DESCRIPTION in files.names() else {}
    contents = json.dumps({**known, key: entry})
    target = files.path.resolve()  # through links, to what they point at
    try:
        write = _write_to_folder if target.is_dir() else _write_to_zip
        write(target, contents)
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written: {error.strerror or error}; it is as it was, mend that and run the same again"
        ) from error


def _write_to_folder(folder: Path, contents: str) -> None:
    with atomic_output(folder / DESCRIPTION) as temporary:
        temporary.write_text(contents, encoding="utf-8")


def _write_to_zip(path: Path, contents: str) -> None:
    with atomic_output(path) as temporary:
        shutil.copyfile(path, temporary)
        with ZipFile(temporary, "a") as archive:
            name = stored_name(archive.namelist(), DESCRIPTION)
            _drop(archive, name)
            archive.writestr(member(name), contents)


def _drop(archive: ZipFile, name: str) -> None:
    """Remove a member, if it is there, from the directory, and from the file if it is the last."""
    info = archive.NameToInfo.pop(name, None)
    if info is not None:
        archive.filelist.remove(info)
        if all(other.header_offset < info.header_offset for other in archive.filelist):
            archive.start_dir = info.header_offset  # where the next member goes
