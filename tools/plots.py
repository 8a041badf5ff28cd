"""The pictures that the commands draw."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from edm2.post_hoc_ema import atomic_output
from edm2.sweeping import Sweep
from edm2.training.monitor import Record

BLUE, ORANGE, GRAY = "#1f5fa8", "#d9822b", "#8a8f98"


def plot_sweep(path: Path, sweep: Sweep) -> None:
    """Frechet distance against EMA length, with the raw weights' and the real images' as lines."""
    percent = [100 * point.sigma_rel for point in sweep.points]
    distances = [point.score.frechet for point in sweep.points]
    lowest = distances.index(min(distances))
    figure, axes = _axes()
    axes.plot(percent, distances, "o-", color=BLUE, markersize=4, label="reconstructed EMA")
    axes.plot(percent[lowest], distances[lowest], "o", color=BLUE, markersize=9, fillstyle="none")
    axes.annotate(
        f"{distances[lowest]:.4f} at {percent[lowest]:.1f}%",
        (percent[lowest], distances[lowest]),
        xytext=(0, 12),
        textcoords="offset points",
        ha="center",
        color=BLUE,
    )
    if sweep.raw is not None:
        axes.axhline(sweep.raw.frechet, color=ORANGE, linestyle="--", label=f"raw weights ({sweep.raw.frechet:.4f})")
    axes.axhline(sweep.floor, color=GRAY, linestyle=":", label=f"real images ({sweep.floor:.4f})")
    axes.set_xlabel("EMA length σ_rel (% of training)")
    axes.set_ylabel("Frechet distance")
    axes.margins(y=0.15)
    axes.set_title("Quality against EMA length, chosen after training")
    axes.legend(frameon=False)
    _save(figure, path)


def plot_losses(path: Path, records: Sequence[Record]) -> None:
    """The loss per noise level, on training and on held-out images where a run measured it, against images seen."""
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
    _save(figure, path)


def _axes() -> tuple[Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)
    plt.close(figure)
