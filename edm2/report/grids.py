"""The same seeds at many settings: EMA lengths, times and guidance weights of a run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edm2.report.pictures import Picture, PictureCache, grid_image
from edm2.sweep.averages import RAW, Averages
from edm2.sweep.evaluator import SampleSettings
from edm2.sweep.guides import Guide
from edm2.sweep.sweep import Point, Sweep, networks_at
from edm2.training import Codec

LENGTHS = (0.015, 0.03, 0.05, 0.07, 0.10, 0.13, 0.16, 0.20, 0.25)
"""EMA lengths where no sweep says which matter."""

MOST_LENGTHS = 11
"""EMA lengths on a slider, besides the raw weights."""

FRACTIONS = (1 / 8, 1 / 4, 1 / 2)
"""Fractions of a run's duration at whose nearest snapshots to draw, besides the last: as a run goes on, they stay."""

COLUMNS = 8, 10
"""Images in a row without classes, and most with a column for each class."""


def lengths_of(sweep: Sweep | None) -> list[float]:
    """EMA lengths for a slider: those of a sweep, of which the best stays if they are too many; few join the usual."""
    known = sorted({result.point.sigma_rel for result in sweep.averages}) if sweep is not None else []
    if len(known) < 3 or sweep is None:
        return sorted({*LENGTHS, *known})
    spaced = np.linspace(0, len(known) - 1, min(MOST_LENGTHS, len(known))).round().astype(int)
    chosen = {known[i] for i in spaced}
    best = sweep.best.point.sigma_rel
    if best not in chosen:
        chosen.remove(min(chosen, key=lambda length: abs(length - best)))
    return sorted(chosen | {best})


def times_of(averages: Averages, duration: int, sweep: Sweep | None = None) -> list[int]:
    """Times for a slider: stored ones at some fractions of the duration, that of the best score, and the last."""
    stored = sorted({snapshot.images_seen for snapshot in averages.snapshots} - {0}) or [averages.last]
    chosen = {min(stored, key=lambda time: abs(time - fraction * duration)) for fraction in FRACTIONS}
    scored = {sweep.best.point.images_seen} & {*stored} if sweep is not None else set()
    return sorted(chosen | scored | {averages.last})


def columns_of(averages: Averages) -> int:
    """Images in a row: a column for each class that is drawn, if they are few."""
    empty = (averages.metadata.get("data") or {}).get("empty_classes") or []
    classes = averages.config.label_dim - len(empty)
    return classes if 2 <= classes <= COLUMNS[1] else COLUMNS[0]


@dataclass(frozen=True)
class Grids:
    """Drawing of a run's grids, kept in a folder."""

    averages: Averages
    codec: Codec
    sampling: SampleSettings
    """Number of images, steps and solver."""
    cache: PictureCache
    guide: Guide | None = None
    device: torch.device | str = "cpu"
    report: Callable[[int], object] = field(default=lambda n: None)
    """Called with numbers of images drawn, or known."""

    @property
    def columns(self) -> int:
        """Images in a row."""
        return columns_of(self.averages)

    def possible(self, points: Sequence[Point]) -> list[Point]:
        """Points whose networks the snapshots can give."""
        return [point for point in points if self._is_possible(point)]

    def _is_possible(self, point: Point) -> bool:
        if point.sigma_rel == RAW:
            return self.averages.has_raw_weights(point.images_seen)
        try:
            self.averages.check(point.images_seen, [point.sigma_rel])
        except ValueError:
            return False
        return True

    def draw(self, points: Sequence[Point]) -> dict[Point, Picture]:
        """Return a grid of the same seeds for every point; those in the folder are not drawn again.

        Raises:
            ValueError, OSError, RuntimeError: a network cannot be loaded, or its samples not be decoded.
        """
        known = {point: self.cache.read(self._facts(point)) for point in points}
        found = {point: picture for point, picture in known.items() if picture is not None}
        self.report(self.sampling.count * len(found))
        for point, pixels in self.pixels([point for point in points if point not in found]):
            found[point] = self.cache.put(self._facts(point), grid_image(pixels, self.columns))
            self.report(self.sampling.count)
        return found

    def pixels(self, points: Sequence[Point]) -> Iterator[tuple[Point, Tensor]]:
        """Draw the images of each point, in whatever order costs least: uint8 [N, C, H, W] on the CPU."""
        seeds, settings = self.sampling.seeds(0), self.sampling
        for point, net, guide in networks_at(points, self.averages, self.guide, self.device, settings.dtype):
            drawn = settings.images(net, self.codec, guide, point.guidance, [seeds])
            yield point, torch.cat(list(drawn)).cpu()

    def facts(self, point: Point) -> dict[str, Any]:
        """JSON of all that decides the images of a point."""
        return {
            "run": self.averages.fingerprint(point.images_seen),
            "point": asdict(point),
            "guide": None if self.guide is None or point.guidance == 1 else self.guide.to_json(),
            "codec": self.codec.to_json(),
            **self.sampling.to_json(),
        }

    def _facts(self, point: Point) -> dict[str, Any]:
        return {"grid": self.columns, **self.facts(point)}
