"""Figure of `edm2 metrics neighbours`: suspicious samples beside the training images closest to them."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from edm2.metrics.features import displayed
from edm2.metrics.neighbours import Neighbours
from edm2.training import Dataset

INCHES = 1.1
"""Side of an image."""


def draw_neighbours(samples: Dataset, training: Dataset, found: Neighbours, rows: int = 16) -> Figure:
    """Draw the most suspicious samples, one per row: the sample, then its closest training images.

    Over each training image stand its file or number, and its distance divided by that of the training image closest
    to the first one: below 1, the sample is nearer than any other training image.
    """
    chosen = found.order[:rows].tolist()
    columns = found.indices.shape[1] + 1
    figure, grid = plt.subplots(
        len(chosen), columns, figsize=(INCHES * columns, (INCHES + 0.35) * len(chosen)), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    figure.suptitle("file and distance; below 1: nearer than any other training image is", fontsize=7)
    for axes, index in zip(grid, chosen, strict=True):
        _show(axes[0], displayed(samples, [index])[0], f"sample {_short(samples.item_name(index))}", weight="bold")
        numbers = found.indices[index].tolist()
        distances = found.distances[index] / max(found.own[index], 1e-12)
        for panel, number, distance in zip(axes[1:], numbers, distances, strict=True):
            _show(panel, displayed(training, [number])[0], f"{_short(training.item_name(number))}\n{distance:.2f}")
    return figure


def _short(name: str) -> str:
    """The end of a file's name that fits over an image."""
    name = name.rpartition("/")[2]
    return name if len(name) <= 18 else f"...{name[-15:]}"


def _show(axes: plt.Axes, image: Tensor, title: str, **style: str) -> None:
    """Draw uint8 [C, H, W] under its title."""
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels[..., 0] if pixels.shape[-1] < 3 else pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    axes.set_title(title, fontsize=6, **style)
