"""Reading all images of a dataset and their conditions, to find before training those that would stop it."""

from collections.abc import Callable
from pathlib import Path

from edm2.datasets.conditions import broken_conditions
from edm2.datasets.parts import read_all
from edm2.post_hoc_ema.files import plain_line
from edm2.training import open_dataset
from edm2.training.data.archive.decoding import read_array
from edm2.training.data.archive.files import DatasetError
from edm2.training.data.archive.index import open_archive
from edm2.training.data.dataset import ImageFormat


def find_broken(
    source: str | Path,
    workers: int = 1,
    on_broken: Callable[[str], None] = lambda line: None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Read every image of a folder or ZIP.

    Args:
        source: Folder or ZIP; of "digits" no image is broken.
        on_broken: Called with the line of each broken image as soon as it is found.

    Returns:
        A line with file, reason and index for each image that cannot be read or differs in size or type from the first
        one that can, and for conditions that are missing, unusable or never vary. Empty: training finds nothing wrong
        with the files.

    Raises:
        DatasetError: The dataset as a whole cannot be used, such as for its dataset.json.
        StorageError: The storage gives no answer.
    """
    if source == "digits":
        return []
    files, catalog = open_archive(Path(source))
    broken: list[str] = []
    first: tuple[ImageFormat, str] | None = None
    formats = read_all(lambda name: ImageFormat.of(read_array(files, name)), catalog.names, workers)
    for index, (name, found) in enumerate(zip(catalog.names, formats, strict=True)):
        line = None
        if isinstance(found, DatasetError):
            line = f"{found} (index {index})"
        elif first is None:
            first = found, name
        elif found != first[0]:
            line = f"{files.path}/{name}: {found.difference(*first)} (index {index})"
        if line is not None:
            broken.append(plain_line(line))  # names come from untrusted files
            on_broken(broken[-1])
        report(index + 1, len(catalog.names))
    for line in broken_conditions(files, catalog, workers):
        broken.append(plain_line(line))
        on_broken(broken[-1])
    if not broken:
        open_dataset(source)  # checks the rest of dataset.json
    return broken
