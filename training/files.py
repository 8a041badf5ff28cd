"""Named byte strings in a folder: what the images of a dataset and its labels are read from."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class DatasetError(ValueError):
    """The data cannot be used as they are. The message is one line: the file, what is wrong with it, the remedy."""

    def __init__(self, message: str) -> None:
        # A file name may hold line breaks, escape sequences of a terminal, or bytes that are no text.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class Files(Protocol):
    """Named byte strings, read one at a time; may be used after a fork, in threads, and pickled."""

    path: Path

    def names(self) -> list[str]:
        """Names of all files, relative to the root, with forward slashes."""

    def read(self, name: str) -> bytes: ...

    def stamps(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """What changes when a file does, without reading any; for each of `names`."""


class FolderFiles:
    """The files in a folder and its sub-folders; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        start = len(os.path.join(self.path, ""))  # cut strings: pathlib would take longer than the disk
        walk = os.walk(self.path, followlinks=True, onerror=self._refuse)
        return [os.path.join(folder, file)[start:].replace(os.sep, "/") for folder, _, files in walk for file in files]

    def read(self, name: str) -> bytes:
        with open(os.path.join(self.path, name), "rb", buffering=0) as file:
            return file.read()

    def stamps(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Size and time."""
        stats = [os.stat(os.path.join(self.path, name)) for name in names]
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

    def _refuse(self, error: OSError) -> None:
        # os.walk would silently leave out what it cannot list.
        raise DatasetError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def one_line(error: Exception) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
