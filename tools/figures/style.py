"""Style of the figures: colours, axes, PNG files; and the figure of losses that the demo draws."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from edm2.post_hoc_ema import atomic_output
from edm2.training.run.logging import Record

BLUE, ORANGE, GRAY = "#1f5fa8", "#d9822b", "#8a8f98"

PALETTE = (BLUE, ORANGE, "#0f8f6c", "#c65fa0", "#6cc4ee", "#7a1f1f", "#d4c21a", "#222222")
"""Colours of curves in one figure. Simulated for each kind of colour blindness, any two stay at least 16 apart in CIE
Lab, as far as those of the palette of Okabe and Ito."""


def colors(count: int) -> list[Any]:
    """Return `count` colours: of the palette, or of a rainbow where it has too few."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return [plt.get_cmap("turbo")(i / (count - 1)) for i in range(count)]


def plot_losses(path: Path, records: Sequence[Record]) -> None:
    """Draw losses against images seen: on held-out and training images if a run measured them, else the objective."""
    measured = [record for record in records if "holdout_loss" in record]
    figure, axes = _axes()
    if measured:
        seen = [record["images_seen"] / 1000 for record in measured]
        axes.plot(seen, [record["holdout_loss"] for record in measured], color=ORANGE, label="held-out images")
        axes.plot(seen, [record["train_loss"] for record in measured], color=BLUE, label="training images")
        axes.set_ylabel("loss λ(σ) (D − y)², mean over noise levels")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    else:
        axes.plot([r["images_seen"] / 1000 for r in records], [r["loss"] for r in records], color=BLUE)
        axes.set_ylabel("training loss per image (Eq. 21)")
    axes.set_xlabel("images seen (thousands)")
    axes.set_title("Loss")
    save_figure(figure, path)


def _axes() -> tuple[Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    styled(axes)
    return figure, axes


def styled(axes: plt.Axes) -> None:
    """Remove the upper and right border, and draw a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file and forget the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)
    plt.close(figure)
