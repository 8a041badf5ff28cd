"""Sizes, channels and types of all images of a dataset, from their headers: found before training, not by it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm2.datasets.parts import read_all
from edm2.training.data.archive.decoding import read_format
from edm2.training.data.archive.files import DatasetError
from edm2.training.data.archive.index import open_archive
from edm2.training.data.dataset import ImageFormat

READERS = 16
"""Threads that read headers: most of the time goes to waiting for a disk or a network."""


@dataclass(frozen=True)
class Survey:
    """Formats of images, and those without one."""

    formats: Counter[ImageFormat]
    unreadable: list[str]
    """A line with file and reason for each image whose header cannot be read, or with more than 8 bits per channel."""
    first_is_unreadable: bool

    def size_to_convert_to(self) -> int:
        """Resolution at which a small network learns from these images in hours: 64, or 32 if most are smaller."""
        short_sides = [min(form.shape[1:]) for form, count in self.formats.items() for _ in range(count)]
        return 64 if np.median(short_sides) >= 64 else 32

    def describe(self) -> list[tuple[str, str]]:
        """Subjects and phrases about what differs among the images; nothing if all are alike."""
        if len(self.formats) < 2:
            return []
        lines = []
        if (sizes := len({form.shape[1:] for form in self.formats})) > 1:
            sides = [sorted(form.shape[axis] for form in self.formats.elements()) for axis in (1, 2)]
            high, wide = (f"{side[0]} to {side[-1]} (median {side[len(side) // 2]})" for side in sides)
            lines.append(("sizes", f"{sizes:,}: height {high}, width {wide}"))
        kinds = Counter((form.shape[0], str(form.dtype)) for form in self.formats.elements())
        if len(kinds) > 1:
            texts = [f"{channels} ({dtype}) in {count:,}" for (channels, dtype), count in kinds.most_common()]
            lines.append(("channels", ", ".join(texts)))
        return lines

    def notes(self, source: str) -> list[str]:
        """Lines about what training would stop at."""
        notes = []
        if len(self.formats) > 1:
            small = f"{Path(source).stem}-{self.size_to_convert_to()}.zip"
            notes.append(
                f"the images are not alike, and training would stop: edm2 dataset convert {source} {small} "
                f"--resolution {self.size_to_convert_to()}"
            )
        if self.unreadable:
            notes.append(
                f"{len(self.unreadable):,} images cannot be used, the first is {self.unreadable[0]}; "
                f"edm2 dataset check {source} lists all"
            )
        return notes


def survey(source: str | Path, report: Callable[[int, int], None] = lambda done, total: None) -> Survey:
    """Read the header of every image of a folder or ZIP.

    Raises:
        DatasetError: The dataset as a whole cannot be used.
        StorageError: The storage gives no answer.
    """
    files, catalog = open_archive(Path(source))
    formats: Counter[ImageFormat] = Counter()
    unreadable: list[str] = []
    first_is_unreadable = False
    found = read_all(lambda name: ImageFormat(*read_format(files, name)), catalog.names, READERS)
    for index, form in enumerate(found):
        if isinstance(form, DatasetError):
            unreadable.append(str(form))
            first_is_unreadable |= index == 0
        else:
            formats[form] += 1
        report(index + 1, len(catalog.names))
    return Survey(formats, unreadable, first_is_unreadable)
