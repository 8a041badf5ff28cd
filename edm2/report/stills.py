"""Pictures of a run that nothing moves: its dataset, samples over time, nearest training images."""

import re
from pathlib import Path

import torch
from PIL import Image

from edm2.datasets.look import look
from edm2.metrics import Detector
from edm2.metrics.features import displayed, features_of
from edm2.metrics.neighbours import find_neighbours
from edm2.post_hoc_ema.files import visible_files
from edm2.report.grids import Grids
from edm2.report.pictures import Picture, PictureCache, grid_image
from edm2.report.records import RunRecords
from edm2.sweep.sweep import Point
from edm2.training import Dataset

FRAMES = 12
"""Most frames of a film strip."""

FRAME_WIDTH = 480
"""Pixels; wider frames are reduced."""

SAMPLES, NEIGHBOURS = 8, 5
"""Samples whose nearest training images are shown, and how many of them."""

MOST_IMAGES = 50_000
"""Images of a dataset that is searched for neighbours; a larger one takes `edm2 metrics neighbours`."""


def dataset_picture(dataset: Dataset, cache: PictureCache) -> Picture:
    """Show some images of each class, as the network sees them.

    Raises:
        ValueError, OSError: they cannot be read, or latents not be decoded.
    """
    facts = {"look": dataset.fingerprint(), "name": dataset.name, "images": len(dataset)}
    return cache.get(facts, lambda: look(dataset)[0])


def film_strip(run: RunRecords, cache: PictureCache) -> list[tuple[int, Picture]]:
    """Return the grids of samples that the run drew while it trained, with their images seen."""
    files = visible_files(run.folder.samples, "samples-*.png")
    named = [(int(match[1]), path) for path in files if (match := re.fullmatch(r"samples-(\d+)", path.stem))]
    step = max(1, -(-len(named) // FRAMES))
    frames = sorted(named)[::-1][::step][::-1]  # the last stays, whatever the step
    return [(time, _picture(path, cache)) for time, path in frames]


def _picture(path: Path, cache: PictureCache) -> Picture:
    return cache.get({"frame": str(path), "changed": path.stat().st_mtime_ns}, lambda: _frame(path))


def _frame(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGB")
    height = round(image.height * FRAME_WIDTH / image.width)
    return image if image.width <= FRAME_WIDTH else image.resize((FRAME_WIDTH, height), Image.Resampling.BOX)


def neighbours_picture(grids: Grids, point: Point, dataset: Dataset, detector: Detector) -> Picture:
    """Show some samples, one a row, each with the training images whose features are nearest to its own.

    Raises:
        ValueError: the images do not suit the detector.
    """
    facts = {"neighbours": detector.name, "data": dataset.fingerprint(), **grids.facts(point)}
    return grids.cache.get(facts, lambda: _neighbours(grids, point, dataset, detector))


def _neighbours(grids: Grids, point: Point, dataset: Dataset, detector: Detector) -> Image.Image:
    [(_, samples)] = grids.pixels([point])
    samples = samples[:SAMPLES]
    training = torch.cat([features for [features] in features_of(dataset, [detector])])
    found = find_neighbours(detector(samples).numpy(), training.numpy(), NEIGHBOURS)
    rows = [torch.cat([samples[[i]], displayed(dataset, found.indices[i].tolist())]) for i in range(len(samples))]
    return grid_image(torch.cat(rows), 1 + NEIGHBOURS)
