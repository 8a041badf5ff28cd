"""Long work on many files in parts that survive an interruption, and the ZIP that they become.

A finished part is a small ZIP in a hidden folder beside the result, named by a digest of everything that decides its
contents. So a later call finds the parts that are still valid by their names, and the result does not depend on which
process made which part. At the end the parts are strung together.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile, ZipFile, ZipInfo

Result = TypeVar("Result")


def digest(*contents: Any) -> str:
    """Digest of contents that JSON can hold: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:32]


# ----------------------------------------------------------------------------------------------------------------------
# The folder of parts


def check_new_zip(out: Path) -> None:
    """Raises ValueError if `out` does not end in .zip, FileExistsError if it exists."""
    if out.suffix.lower() != ".zip":
        raise ValueError(f"{out}: datasets are written as ZIP files; write {out.name}.zip")
    if out.exists():
        kind = "folder" if out.is_dir() else "file"
        raise FileExistsError(f"{out}: there is a {kind} of this name already; remove it, or choose another name")


def parts_folder(out: Path) -> Path:
    """Folder of the parts of `out`."""
    return out.with_name(f".{out.name}.parts")


@contextmanager
def writing_to(out: Path) -> Iterator[Path]:
    """Make the folder for the parts, remove it at the end if it is empty, and name `out` in errors of writing.

    Errors of reading are no OSError: archives turn them into a DatasetError.
    """
    work = parts_folder(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
        yield work
    except OSError as error:
        raise OSError(
            f"{out}: cannot be written: {error.strerror or error}; "
            "mend that and run the same again, finished parts are kept"
        ) from error
    finally:
        with suppress(OSError):
            work.rmdir()


def remove(paths: Iterable[Path]) -> None:
    """Remove files that may be gone already."""
    for path in list(paths):
        path.unlink(missing_ok=True)


def ahead(pool: Executor, calls: Iterable[Callable[[], Result]], depth: int) -> Iterator[Result]:
    """Yield the results of `calls` in order, while up to `depth` of the following ones are done in the background.

    The next of `calls` is taken only when there is room for it.
    """
    futures: deque[Future[Result]] = deque()
    for call in calls:
        futures.append(pool.submit(call))
        if len(futures) > depth:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


# ----------------------------------------------------------------------------------------------------------------------
# ZIP files


def member(name: str) -> ZipInfo:
    """Entry for a member that is stored uncompressed and without date: the same contents are the same bytes."""
    info = ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # Unix, whose permissions the next line gives: all may read
    info.external_attr = 0o644 << 16
    return info


def append(archive: ZipFile, path: Path) -> list[str]:
    """Copy all members of the ZIP `path` in one piece, without reading them one by one, and return their names.

    `archive.writestr` must follow before it is closed: that is where it notices that it has grown.

    Raises:
        OSError: The file is damaged.
    """
    assert archive.fp is not None  # it is open
    try:
        with ZipFile(path) as part, open(path, "rb") as file:
            archive.fp.seek(archive.start_dir)
            archive.fp.write(file.read(part.start_dir))  # all that is before its directory
            members = part.infolist()
    except BadZipFile as error:
        raise OSError(f"{path} is damaged, remove it") from error
    for info in members:
        info.header_offset += archive.start_dir
    archive.filelist += members
    archive.start_dir = archive.fp.tell()
    return [info.filename for info in members]


def labels_to_json(labels: dict[str, int], class_names: Sequence[str]) -> dict[str, Any]:
    """Contents of dataset.json: labels, and names of classes up to the last that occurs, unless they are numbers."""
    if not class_names:
        return {"labels": None}
    names = list(class_names[: max(labels.values()) + 1])
    pairs = [[name, label] for name, label in labels.items()]
    numbers = [str(label) for label in range(len(names))]
    return {"labels": pairs} if names == numbers else {"labels": pairs, "class_names": names}
