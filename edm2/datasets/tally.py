"""Counts of what a conversion did to the images of each kind of file, and the table that it prints."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

from edm2.datasets.pictures import Picture
from edm2.training.data.files import suffix_of

COLUMNS = ("found", "converted", "enlarged", "too small", "broken", "not read", "litter")


@dataclass
class Tally:
    """Record of what became of images."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: {column: Counter() for column in COLUMNS})
    """Numbers of files by suffix, litter by its kind, for each of `COLUMNS`."""
    broken: list[list[str]] = field(default_factory=list)
    """Name of each image that cannot be read, and the reason."""
    turned: int = 0
    """Images whose EXIF orientation was applied."""
    composited: int = 0
    """Images that were transparent."""
    further_pages: int = 0
    """Pages of TIFF files that are left out."""
    rounded: int = 0
    """Gray images of more than 8 bits."""

    def count(self, column: str, name: str) -> None:
        """Count an image."""
        self.counts[column][suffix_of(name)] += 1

    def add_broken(self, name: str, reason: str) -> None:
        """Count an image that cannot be read."""
        self.count("broken", name)
        self.broken.append([name, reason])

    def add_others(self, files: Mapping[str, int], litter: Mapping[str, int]) -> None:
        """Count files that are no images, by suffix, and those of other programs, by kind."""
        for column, counts in (("not read", files), ("litter", litter)):
            self.counts[column].update(counts)
            self.counts["found"].update(counts)

    def add_picture(self, picture: Picture) -> None:
        """Count what was done to an image."""
        self.turned += picture.turned
        self.composited += picture.composited
        self.further_pages += picture.further_pages
        self.rounded += picture.rounded

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            {column: self.counts[column] + other.counts[column] for column in COLUMNS},
            self.broken + other.broken,
            self.turned + other.turned,
            self.composited + other.composited,
            self.further_pages + other.further_pages,
            self.rounded + other.rounded,
        )

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.write_text(json.dumps(vars(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Tally":
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        counts = {column: Counter(numbers) for column, numbers in values.pop("counts").items()}
        return cls(counts, **values)

    def total(self, column: str) -> int:
        """Number of images of all suffixes."""
        return self.counts[column].total()

    def table(self) -> list[str]:
        """Lines of a table, one per suffix; columns without a number are left out."""
        columns = [column for column in COLUMNS if self.total(column)]
        width = max(len(suffix) for suffix in (*self.counts["found"], "no suffix"))
        lines = [" " * width + "".join(f"{column:>11}" for column in columns)]
        for suffix in sorted(self.counts["found"]):
            numbers = "".join(f"{self.counts[column][suffix]:>11,}" for column in columns)
            lines.append(f"{suffix or 'no suffix':<{width}}{numbers}")
        return lines

    def remarks(self, background: str) -> list[str]:
        """Lines about pixels that are not those of the files."""
        said = (
            (self.turned, "turned upright by their EXIF orientation"),
            (self.composited, f"transparent: composited on {background} (--background)"),
            (self.further_pages, "further pages of TIFF files left out"),
            (self.rounded, "gray of more than 8 bits: rounded to 8"),
        )
        return [f"{count:,} {what}" for count, what in said if count]


def total_of(tallies: Sequence[Tally]) -> Tally:
    """Sum of all."""
    return reduce(Tally.__add__, tallies, Tally())
