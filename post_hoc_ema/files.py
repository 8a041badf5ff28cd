"""Files written completely or not at all, and texts from untrusted files: JSON parsed safely, messages of one line.

Needs neither torch nor numpy, so that a command line can report an error at once.
"""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

MAX_DEPTH = 64
"""Nesting of lists and objects in untrusted JSON; whoever walks through them has a stack of finite depth."""


@contextmanager
def atomic_output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; what was written there becomes `path` when the block succeeds.

    The temporary file lies hidden in the same folder (created if missing), so that the last step is a rename: whoever
    opens `path` sees the old file or the whole new one, also after a power cut. If the block raises, nothing is left.

    Raises:
        OSError: The folder cannot be created or written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # several machines may share a process id
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers (safetensors) replace the file by one that only its owner may read
        _flush_to_disk(temporary, os.O_RDWR)
        temporary.replace(path)
    except BaseException:  # an interrupted run leaves nothing behind either
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # a folder's entries can be flushed on POSIX only
        _flush_to_disk(path.parent, os.O_DIRECTORY)


def check_output(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless a file can be written at a path: for before long work. Its folder is created if missing."""
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=folder).close()


def _flush_to_disk(path: Path, flags: int) -> None:
    """Wait until a file's contents, or a folder's entries, are on disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def visible_files(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    """Entries of a folder that match a pattern, by name; hidden ones, such as macOS's `._NAME`, do not exist."""
    return sorted(path for path in Path(folder).glob(pattern) if not path.name.startswith("."))


def parse_json(text: str | bytes) -> Any:
    """Parse an untrusted JSON text."""
    too_deep = f"more than {MAX_DEPTH} lists or objects inside each other"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [value]
    for _ in range(MAX_DEPTH):
        items = (x.values() if isinstance(x, dict) else x for x in level if isinstance(x, dict | list))
        level = [item for inner in items for item in inner]
        if not level:
            return value
    raise ValueError(too_deep)


def plain_line(text: str, longest: int = 1000) -> str:
    """Make one line of a text: control characters escaped, the middle left out if it is long.

    File names, and what is written in files, may hold line breaks, escape sequences, and bytes that are not text.
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return line if len(line) <= longest else f"{line[: longest - 400]} ... {line[-395:]}"


def one_line(error: BaseException, longest: int = 1000) -> str:
    """Whole message of an error in one line; the name of its class if it has none."""
    return plain_line(" ".join(str(error).split()), longest) or type(error).__name__


def first_line(error: BaseException) -> str:
    """First line of an error's message; some go on for pages."""
    return plain_line(str(error).partition("\n")[0])
