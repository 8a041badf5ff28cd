"""Mean and standard deviation of a dataset per channel, and sigma_data over all channels.

Networks and preconditioning expect data of mean 0 and standard deviation sigma_data (0.5; arXiv 2312.02696v2, Appendix
B.1). Sums are float64 and added in the order of the images, so the number of workers does not change them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from edm2.datasets.parts import in_threads
from edm2.training import Dataset
from edm2.training.data.dataset import evenly_spaced_indices

CHUNK = 16
"""Images that a thread adds up at a time."""


@dataclass(frozen=True)
class Statistics:
    """Measured statistics."""

    mean: tuple[float, ...]
    """Mean per channel: levels of pixels, or latents as the VAE gives them."""

    std: tuple[float, ...]
    """Standard deviation per channel, in the same unit."""

    sigma_data: float
    """Root-mean-square deviation from the channels' means, over all channels: latents in the same unit, pixels where
    black is -1 and white 1."""

    def to_json(self) -> dict[str, Any]:
        """Entries of dataset.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums from which mean and standard deviation follow."""

    count: int
    """Number of values per channel."""
    sums: np.ndarray
    """Sums of the values (expected values, for latents) of each channel, and of their squares: float64 [2, C]."""

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.sums + other.sums)

    def statistics(self, unit: float = 1.0) -> Statistics:
        """Mean and standard deviation in the unit of the values, sigma_data in multiples of `unit`."""
        first, second = self.sums.tolist()
        mean = [total / self.count for total in first]
        variance = [max(0.0, total / self.count - m**2) for total, m in zip(second, mean, strict=True)]
        return Statistics(tuple(mean), tuple(map(math.sqrt, variance)), math.sqrt(sum(variance) / len(variance)) / unit)


def sums_of_pixels(image: np.ndarray) -> Sums:
    """Sums of levels [C, H, W]."""
    levels = image.astype(np.float64)
    return _sums(levels, np.square(levels))


def sums_of_moments(moments: np.ndarray) -> Sums:
    """Sums of the latents z = mean + std · noise with moments [2 C, H, W]: E[z] = mean, E[z²] = mean² + std²."""
    mean, std = np.split(moments.astype(np.float64), 2)
    return _sums(mean, np.square(mean) + np.square(std))


def _sums(values: np.ndarray, squares: np.ndarray) -> Sums:
    return Sums(values[0].size, np.stack([x.reshape(len(x), -1).sum(axis=1) for x in (values, squares)]))


def measure(
    dataset: Dataset,
    max_images: int | None = None,
    workers: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Statistics:
    """Measure the statistics of a dataset of pixels or of moments.

    Args:
        dataset: Dataset to measure.
        max_images: Number of evenly spaced images to measure; default: all.
        workers: Threads that read and add up.
        report: Called with the number of images done and of all, as the work goes on.

    Raises:
        DatasetError: A file is unusable.
        ValueError: `max_images` is below 1.
    """
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images={max_images} must be at least 1")
    total = min(len(dataset), max_images or len(dataset))
    chosen = evenly_spaced_indices(len(dataset), total)
    chunks = [chosen[first : first + CHUNK] for first in range(0, total, CHUNK)]
    sums: list[Sums] = []
    for added in in_threads(partial(_sums_of_chunk, dataset), chunks, workers):
        sums.append(added)
        report(min(CHUNK * len(sums), total), total)
    return total_of(sums).statistics((dataset.levels - 1) / 2 if dataset.kind == "pixels" else 1.0)


def _sums_of_chunk(dataset: Dataset, indices: np.ndarray) -> Sums:
    sums_of = sums_of_pixels if dataset.kind == "pixels" else sums_of_moments
    return total_of([sums_of(dataset.images([int(index)])[0].numpy()) for index in indices])


def total_of(sums: Sequence[Sums]) -> Sums:
    """Add sums in their order."""
    return reduce(Sums.__add__, sums)
