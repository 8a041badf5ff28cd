"""Style of the figures: colours, axes, PNG files."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from edm2.post_hoc_ema import atomic_output

BLUE, ORANGE, GRAY = "#1f5fa8", "#d9822b", "#8a8f98"

PALETTE = (BLUE, ORANGE, "#0f8f6c", "#c65fa0", "#6cc4ee", "#7a1f1f", "#d4c21a", "#222222")
"""Colours of curves in one figure. Simulated for each kind of colour blindness, any two stay at least 16 apart in CIE
Lab, as far as those of the palette of Okabe and Ito."""


def colors(count: int) -> list[Any]:
    """Return `count` colours: of the palette, or of a rainbow where it has too few."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return [plt.get_cmap("turbo")(i / (count - 1)) for i in range(count)]


def styled(axes: plt.Axes) -> None:
    """Remove the upper and right border, and draw a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file and forget the figure."""
    with atomic_output(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)
    plt.close(figure)
