"""Named byte strings in a folder: the images of a dataset and its `dataset.json`. Those in a ZIP are in `zip_files`."""

import os
import unicodedata
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from edm2.post_hoc_ema.files import first_line, one_line, plain_line
from edm2.training.data.archive.retry import Result, is_transient, retry

MAX_BYTES = 1 << 30
"""Size of one file, unpacked: more than any image or table of labels needs, less than would endanger the machine."""

END_BYTES = 1 << 16
"""Bytes at the start and at the end of a file that tell it from others of its size: images differ everywhere."""

READERS = 16
"""Threads that read the ends of files: most of the time goes to waiting for a disk or a network."""

DESCRIPTION = "dataset.json"
"""Name of the file with the labels and what was measured."""

CONDITIONS = "conditions"
"""Folder beside the images with a sub-folder for each of their conditions."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SUFFIXES = (*IMAGE_SUFFIXES, ".npy")

HEIF_SUFFIXES = (".heic", ".heif")
"""Suffixes of images that conversion reads with the extra "heic"."""

CONVERTIBLE = (*SUFFIXES, ".jfif", ".gif", ".tif", ".tiff", ".avif", *HEIF_SUFFIXES)
"""Suffixes of images that `edm2 dataset convert` reads; training reads `SUFFIXES` alone."""

IMAGE_LIKE = frozenset(
    (*CONVERTIBLE, ".jxl", ".jp2", ".psd", ".svg", ".ico", ".tga", ".ppm", ".pgm", ".exr", ".hdr")
    + (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
)
"""Suffixes of files that people take for images: those that are not read are counted."""

LITTER = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
    + ("Thumbs.db", "desktop.ini")
)
"""Names of files and folders that systems and network storage leave among images; hidden ones are litter too."""


def suffix_of(name: str) -> str:
    """Suffix of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # pathlib would take longer than the disk


def is_of_dataset(name: str) -> bool:
    """True for a file that matters to a dataset: an image of any kind, an array, or its dataset.json."""
    return suffix_of(name) in IMAGE_LIKE or name.rpartition("/")[2] == DESCRIPTION


def condition_of(name: str) -> tuple[str, str] | None:
    """Condition that a file is of, and the path of its image: conditions/NAME/PATH; None for other files."""
    match name.split("/", 2):
        case [folder, condition, path] if folder == CONDITIONS:
            return condition, path
    return None


def is_litter(part: str) -> bool:
    """True if a file or folder of this name is not the user's: hidden, or left by a system."""
    return part.startswith(".") or part in LITTER


def kind_of_litter(part: str) -> str:
    """Kind of a file or, with a slash at its end, folder that is litter: its name, or `._*` or `.*` for many."""
    if part.startswith("._"):
        return "._*"
    hidden = part.startswith(".") and part != ".DS_Store"
    return (".*/" if part.endswith("/") else ".*") if hidden else part


def normalized(name: str) -> str:
    """Name of a file as everything here compares it: forward slashes, relative to the root, composed (NFC)."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    while name.startswith(("./", "/")):
        name = name.removeprefix(".").removeprefix("/")
    return name


class DatasetError(ValueError):
    """Data that cannot be used as they are. The message is one line: the file, what is wrong with it, the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(plain_line(message))


class StorageError(DatasetError):
    """Storage that gave no answer, at any attempt; nothing is known of the file itself."""


def unreadable(where: str, error: Exception) -> DatasetError:
    """Error that says what could not be read, and why."""
    kind = StorageError if is_transient(error) else DatasetError
    return kind(f"{where}: cannot be read: {first_line(error) or type(error).__name__}")


class Files(Protocol):
    """Named byte strings, read one at a time; may be used after a fork, in threads, and pickled."""

    path: Path

    @property
    def litter(self) -> Counter[str]:
        """Number of files and folders of each `kind_of_litter`, once `names` was called."""

    def names(self) -> list[str]:
        """Names of all files but litter, relative to the root, with forward slashes."""

    def read(self, name: str) -> bytes:
        """Contents of a file. Raises OSError, or any other error if the file is missing or damaged."""

    def head(self, name: str, count: int) -> bytes:
        """First bytes of a file, at most `count`. Raises as `read`."""

    def stamps(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Pair of numbers for each of `names` that changes when the file does; no file is read."""

    def contents(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Size and a checksum for each of `names`, which are the same for a copy of the file."""


class FolderFiles:
    """Files in a folder and its sub-folders; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.litter = Counter[str]()

    def names(self) -> list[str]:
        """Names of all regular files but litter: a FIFO would never answer. Raises DatasetError if a folder is refused.

        Each real folder is visited once, and links only when all else is known, so that circles end.
        """
        found: list[str] = []
        self.litter = Counter()
        visited: set[tuple[int, int]] = set()
        links = deque([""])
        while links:
            folders = [links.popleft()]
            while folders:
                folder = folders.pop()
                path = os.path.join(self.path, folder)
                entries, stat = _entries(path), os.stat(path)
                if (stat.st_dev, stat.st_ino) in visited:
                    continue
                visited.add((stat.st_dev, stat.st_ino))
                for entry in entries:
                    is_folder = _is(entry.is_dir)
                    if is_litter(entry.name):
                        self.litter[kind_of_litter(entry.name + "/" * is_folder)] += 1
                    elif _is(entry.is_file):
                        found.append(folder + entry.name)
                    elif is_folder:
                        (links if entry.is_symlink() else folders).append(f"{folder}{entry.name}/")
        return found

    def read(self, name: str) -> bytes:
        """Contents of a file. Raises OSError or ValueError."""
        path = os.path.join(self.path, name)
        return retry(lambda: _read_whole(path), path)

    def head(self, name: str, count: int) -> bytes:
        """First bytes of a file. Raises OSError."""
        path = os.path.join(self.path, name)
        return retry(lambda: _read_head(path, count), path)

    def stamps(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Size and time of modification."""
        stats = [os.stat(os.path.join(self.path, name)) for name in names]
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

    def contents(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Size, and checksum of the first and last 64 KiB."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(_ends_of, (os.path.join(self.path, name) for name in names)))


def list_folder(path: str | Path) -> list[os.DirEntry[str]]:
    """Entries of a folder by name, without litter. Raises DatasetError if it cannot be listed."""
    return [entry for entry in _entries(path) if not is_litter(entry.name)]


def _entries(path: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def folder_root(path: Path) -> Path:
    """Folder of a dataset that `path` wraps: while all is in one folder, which has sub-folders or dataset.json."""
    while True:
        entries = list_folder(path)
        folders = [entry for entry in entries if _is(entry.is_dir)]
        beside = any(is_of_dataset(entry.name) for entry in entries if entry not in folders)
        if len(folders) != 1 or beside or folders[0].is_symlink():
            return path
        inner = list_folder(folders[0].path)
        if not any(_is(entry.is_dir) or entry.name == DESCRIPTION for entry in inner):
            return path
        path = path / folders[0].name


def _is(test: Callable[[], bool]) -> bool:
    """Result of a test of an entry; False for a link that leads nowhere."""
    try:
        return test()
    except OSError:
        return False


def _read_whole(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        check_size(os.fstat(file.fileno()).st_size)
        return file.read()


def _read_head(path: str, count: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(count)


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
