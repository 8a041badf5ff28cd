"""Long work on many files in parts that survive an interruption, and the ZIP that they become.

A finished part is a small ZIP in a hidden folder beside the result, named by a digest of everything that decides its
contents. So a later call finds the parts that are still valid by their names, and the result does not depend on which
process made which part. At the end the parts are strung together and removed.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np

from edm2.post_hoc_ema import atomic_output
from edm2.training.data.archive.catalog import Catalog, condition_files, missing_condition
from edm2.training.data.archive.files import (
    CONDITIONS,
    DESCRIPTION,
    DatasetError,
    Files,
    StorageError,
    condition_of,
    suffix_of,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """Images that go into one file."""

    path: Path
    first: int
    """Number of the first image in the result."""
    names: list[str]

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + len(self.names))


def check_new_zip(out: Path) -> None:
    """Raises ValueError if `out` does not end in .zip, FileExistsError if it exists."""
    if out.suffix.lower() != ".zip":
        raise ValueError(f"{out}: datasets are written as ZIP files; write {out.name}.zip")
    if out.exists():
        shutil.rmtree(_parts_folder(out), ignore_errors=True)  # of a call that was killed while it removed them
        kind = "folder" if out.is_dir() else "file"
        raise FileExistsError(f"{out}: there is a {kind} of this name already; remove it, or choose another name")


def evenly_from_classes(labels: np.ndarray, count: int | None) -> np.ndarray:
    """Indices of at most `count` images (None: all), ascending: the first of each class, as evenly as can be."""
    if count is not None and count < 1:
        raise ValueError(f"max_images={count} must be at least 1")
    by_class = np.argsort(labels, kind="stable")
    ordered = labels[by_class]
    rank = np.empty(len(labels), dtype=np.int64)  # 0 for the first image of each class, 1 for the second, ...
    rank[by_class] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return np.sort(np.lexsort((labels, rank))[:count])


def _parts_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts")


def divide(out: Path, names: Sequence[str], stamps: Sequence[Any], size: int, settings: Sequence[Any]) -> list[Part]:
    """Divide the work.

    Args:
        out: The ZIP that the parts become.
        names: Names of the images, in their order in the result.
        stamps: JSON for each image that changes with it.
        size: Images per part.
        settings: Everything else that decides the contents of a part, as JSON.
    """
    parts = []
    for first in range(0, len(names), size):
        chosen = list(names[first : first + size])
        contents = json.dumps([*settings, first, chosen, stamps[first : first + size]])
        digest = hashlib.sha256(contents.encode()).hexdigest()[:32]
        parts.append(Part(_parts_folder(out) / f"{digest}.zip", first, chosen))
    return parts


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Make the folder for the parts, remove it at the end if it is empty, and name `out` in errors of writing.

    Errors of reading are no OSError: archives turn them into a DatasetError.
    """
    work = _parts_folder(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OSError(
            f"{out}: cannot be written: {error.strerror or error}; "
            "mend that and run the same again, finished parts are kept"
        ) from error
    finally:
        with suppress(OSError):
            work.rmdir()


def make_missing(
    parts: Sequence[Part], make: Callable[[list[Part]], Iterable[Part]], report: Callable[[int, int], None]
) -> None:
    """Let `make` write the parts that are not there, and report the number of images done as it yields each of them."""
    missing = [part for part in parts if not part.path.exists()]
    total = sum(len(part.names) for part in parts)
    done = total - sum(len(part.names) for part in missing)
    report(done, total)
    for part in make(missing):
        done += len(part.names)
        report(done, total)


def string_together(parts: Sequence[Part], out: Path, describe: Callable[[list[str]], dict[str, Any]]) -> int:
    """Write the parts to the ZIP `out`, and remove them.

    Args:
        describe: Gives the contents of dataset.json for the names of the images.

    Returns:
        Number of images.
    """
    whole = _parts_folder(out) / out.name  # what a killed call leaves of it is removed with the parts
    with atomic_output(whole) as temporary, ZipFile(temporary, "w") as archive:
        stored = [name for part in parts for name in append(archive, part.path)]
        names = [name for name in stored if condition_of(name) is None]
        archive.writestr(member(DESCRIPTION), json.dumps(describe(names)))
    whole.replace(out)
    shutil.rmtree(whole.parent)
    return len(names)


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


def in_threads(call: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield what `call` returns for each of `items`, in order; so many threads work a few items ahead."""
    with ThreadPoolExecutor(workers) as pool:
        yield from ahead(pool, (partial(call, item) for item in items), 4 * workers)


def read_all(read: Callable[[str], Result], names: Iterable[str], workers: int) -> Iterator[Result | DatasetError]:
    """Read files in threads and yield in their order what was read of each, or the error of a broken one."""

    def read_or_error(name: str) -> Result | DatasetError:
        try:
            return read(name)
        except StorageError:
            raise
        except DatasetError as error:
            return error

    return in_threads(read_or_error, names, workers)


# ----------------------------------------------------------------------------------------------------------------------
# Conditions


ConditionFiles = Mapping[str, Mapping[str, str]]
"""File of each image, by condition and image."""


def conditions_to_carry(files: Files, catalog: Catalog, names: Sequence[str]) -> ConditionFiles:
    """Files of the conditions of some images. Raises DatasetError if one is missing."""
    carried = {}
    for condition in catalog.condition_names:
        found = condition_files(files, condition, names)
        if line := missing_condition(files, condition, names, found):
            raise DatasetError(line)
        carried[condition] = {name: file for name, file in zip(names, found, strict=True) if file is not None}
    return carried


def known_of_conditions(catalog: Catalog) -> dict[str, Any]:
    """Entry of dataset.json with what is known of conditions, such as their text encoder."""
    return {"conditions": catalog.conditions} if catalog.condition_names and catalog.conditions else {}


def stamps_with_conditions(files: Files, names: Sequence[str], conditions: ConditionFiles) -> list[Any]:
    """Stamps of images, with those of their conditions."""
    stamps: list[Any] = files.stamps(names)
    for found in conditions.values():
        of_condition = files.stamps([found[name] for name in names])
        stamps = [[*one, *other] for one, other in zip(stamps, of_condition, strict=True)]
    return stamps


def write_conditions(
    archive: ZipFile,
    files: Files,
    conditions: ConditionFiles,
    name: str,
    renamed: str,
    change: Callable[[str, bytes], bytes] = lambda file, data: data,
) -> None:
    """Write the conditions of the image `name`, which is called `renamed` there, after a `change` of their bytes."""
    stem = renamed.rpartition(".")[0]
    for condition, found in conditions.items():
        file = found[name]
        target = f"{CONDITIONS}/{condition}/{stem}{suffix_of(file)}"
        archive.writestr(member(target), change(file, files.read(file)))


# ----------------------------------------------------------------------------------------------------------------------
# ZIP files


def member(name: str) -> ZipInfo:
    """Entry for a member that is stored uncompressed and without date: the same contents are the same bytes."""
    info = ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # Unix, whose permissions the next line gives: all may read
    info.external_attr = 0o644 << 16
    return info


def numbered(stem: str, number: int, suffix: str) -> str:
    """Name of an image, in folders of a thousand: 12345 is "00012/img00012345.png" for the stem "img"."""
    return f"{number:08}"[:5] + f"/{stem}{number:08}{suffix}"


def append(archive: ZipFile, path: Path) -> list[str]:
    """Copy all members of the ZIP `path` in one piece, without reading them one by one, and return their names.

    `archive.writestr` must follow before it is closed: that is where it notices that it has grown.
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
