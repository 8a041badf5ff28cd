"""Named byte strings in a folder: the images of a dataset and its `dataset.json`. Those in a ZIP are in `zip_files`."""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from edm2.post_hoc_ema.files import one_line, plain_line
from edm2.training.data.retry import Result, is_transient, retry

MAX_BYTES = 1 << 30
"""Size of one file, unpacked: more than any image or table of labels needs, less than would endanger the machine."""

END_BYTES = 1 << 16
"""Bytes at the start and at the end of a file that tell it from others of its size: images differ everywhere."""

READERS = 16
"""Threads that read the ends of files: most of the time goes to waiting for a disk or a network."""


class DatasetError(ValueError):
    """Data that cannot be used as they are. The message is one line: the file, what is wrong with it, the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(plain_line(message))


class StorageError(DatasetError):
    """Storage that gave no answer, at any attempt; nothing is known of the file itself."""


class Files(Protocol):
    """Named byte strings, read one at a time; may be used after a fork, in threads, and pickled."""

    path: Path

    def names(self) -> list[str]:
        """Names of all files, relative to the root, with forward slashes."""

    def read(self, name: str) -> bytes:
        """Contents of a file. Raises OSError, or any other error if the file is missing or damaged."""

    def stamps(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Pair of numbers for each of `names` that changes when the file does; no file is read."""

    def contents(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Size and a checksum for each of `names`, which are the same for a copy of the file."""


class FolderFiles:
    """Files in a folder and its sub-folders; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        start = len(os.path.join(self.path, ""))  # cut strings: pathlib would take longer than the disk
        walk = os.walk(self.path, followlinks=True, onerror=self._refuse)
        return [os.path.join(folder, file)[start:].replace(os.sep, "/") for folder, _, files in walk for file in files]

    def read(self, name: str) -> bytes:
        """Contents of a file. Raises OSError or ValueError."""
        path = os.path.join(self.path, name)
        return retry(lambda: _read_whole(path), path)

    def stamps(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Size and time of modification."""
        stats = [os.stat(os.path.join(self.path, name)) for name in names]
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

    def contents(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Size, and checksum of the first and last 64 KiB."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(_ends_of, (os.path.join(self.path, name) for name in names)))

    def _refuse(self, error: OSError) -> None:
        # os.walk would silently leave out what it cannot list.
        raise DatasetError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def _read_whole(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        check_size(os.fstat(file.fileno()).st_size)
        return file.read()


def _ends_of(path: str) -> tuple[int, int]:
    """Size of a file, and CRC-32 of its first and last 64 KiB. Raises DatasetError if it cannot be read."""

    def read() -> tuple[int, int]:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            checksum = zlib.crc32(file.read(END_BYTES))
            file.seek(max(END_BYTES, size - END_BYTES))
            return size, zlib.crc32(file.read(END_BYTES), checksum)

    try:
        return retry_from(Path(path), read)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error


def check_size(size: int) -> None:
    """Raises ValueError for a file that is larger than any image or table of labels."""
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes are more than any image has; at most {MAX_BYTES:,}")


def retry_from(path: Path, read: Callable[[], Result]) -> Result:
    """Return what `read` returns, with `retry`. Raises StorageError without an answer, DatasetError otherwise."""
    try:
        return retry(read, str(path))
    except OSError as error:
        kind = StorageError if is_transient(error) else DatasetError
        raise kind(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
