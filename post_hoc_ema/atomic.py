"""Files that appear complete or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def is_unfinished(candidate: Path, path: Path) -> bool:
    """Whether `candidate` is what `atomic_output(path)` leaves where the process was killed."""
    return candidate.parent == path.parent and candidate.match(f".{path.name}.*.tmp")


def _flush_to_disk(path: Path, flags: int) -> None:
    """Wait until a file's contents, or a folder's entries, are on disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
