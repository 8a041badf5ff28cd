"""Counts of what a conversion did to the images of each kind of file, and the table that it prints."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edm2.datasets.pictures import Picture
from edm2.training.data.archive.files import suffix_of

COLUMNS = ("found", "converted", "enlarged", "too small", "broken", "not read", "litter")

REMARKS = {
    "turned": "turned upright by their EXIF orientation",
    "composited": "transparent: composited on {} (--background)",
    "further_pages": "further pages of TIFF files left out",
    "rounded": "gray of more than 8 bits: rounded to 8",
}
"""Words for the fields of a `Picture` that are counted; braces stand for the background."""


@dataclass
class Tally:
    """Record of what became of images."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: {column: Counter() for column in COLUMNS})
    """Numbers of files by suffix, litter by its kind, for each of `COLUMNS`."""
    broken: list[list[str]] = field(default_factory=list)
    """Name of each image that cannot be read, and the reason."""
    pictures: Counter[str] = field(default_factory=Counter)
    """Sums over images of what was done to them, by the fields of `Picture`."""

    def count(self, column: str, name: str) -> None:
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
        self.pictures.update({name: int(getattr(picture, name)) for name in REMARKS})

    def __add__(self, other: "Tally") -> "Tally":
        counts = {column: self.counts[column] + other.counts[column] for column in COLUMNS}
        return Tally(counts, self.broken + other.broken, self.pictures + other.pictures)

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.write_text(json.dumps(vars(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Tally":
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        counts = {column: Counter(numbers) for column, numbers in values["counts"].items()}
        return cls(counts, values["broken"], Counter(values["pictures"]))

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
        counted = ((self.pictures[name], what.format(background)) for name, what in REMARKS.items())
        return [f"{count:,} {what}" for count, what in counted if count]
