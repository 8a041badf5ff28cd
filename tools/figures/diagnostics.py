"""Figures of what --diagnostics measures: magnitudes, updates, noise levels, clipped and non-finite numbers."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edm2.tools.figures.panels import (
    curves_of,
    draw_buckets,
    draw_curve,
    draw_levels,
    finish,
    noise_axis,
    panels,
    style_legend,
    time_axis,
)
from edm2.tools.figures.runs import PlottedRun
from edm2.tools.figures.style import GRAY
from edm2.training.run.logging import Record

# --------------------------------------------------------------------------------- magnitudes (Figures 3 and 15)


def draw_activations(runs: Sequence[PlottedRun]) -> Figure:
    """Draw the largest and the mean magnitude of the features of each block resolution, in the averaged network."""
    figure, axes = panels(["Activations, largest feature", "Activations, mean of features"])
    draw_buckets(axes[0], runs, lambda r: r["activations"]["max"], max)
    draw_buckets(axes[1], runs, lambda r: r["activations"]["mean"], fmean)
    axes[0].set_ylabel("magnitude √(mean h²)")
    for panel in axes:
        finish(panel)
    return figure


def draw_weights(runs: Sequence[PlottedRun]) -> Figure:
    """Draw the magnitudes of the weights' output units, averaged as in the paper and as the optimizer sees them."""
    figure, axes = panels([
        "Averaged weights, largest unit", "Averaged weights, mean of units",
        "Raw weights, largest unit", "Raw weights, mean of units",
    ])  # fmt: skip
    rows: Any = zip(("ema", "ema", "raw", "raw"), ("max", "mean", "max", "mean"), (max, fmean, max, fmean), strict=True)

    def weights(kind: str, statistic: str) -> Callable[[Record], dict[str, float]]:
        return lambda record: record["weights"][kind][statistic]

    for panel, (kind, statistic, combine) in zip(axes, rows, strict=True):
        draw_buckets(panel, runs, weights(kind, statistic), combine)
        finish(panel, legend=panel is axes[0])
    for panel in axes[::2]:
        panel.set_ylabel("magnitude √(mean w²)")
    return figure


# ----------------------------------------------------------------------------------------- updates (Section 2.3)


def draw_updates(runs: Sequence[PlottedRun]) -> Figure:
    """Draw the relative update and the effective learning rate of all weights of a block resolution together."""
    figure, axes = panels(["Relative update of a step", "Effective learning rate"])
    draw_buckets(axes[0], runs, lambda r: r["updates"].get("relative"), fmean)
    draw_buckets(axes[1], runs, lambda r: r["updates"].get("effective_lr"), fmean)
    unit = time_axis(axes[1], runs)
    if len(runs) == 1:
        draw_curve(
            axes[1], runs[0].diagnostics, lambda r: r["updates"].get("lr"), unit, color=GRAY, linestyle=":", label="lr"
        )
    axes[0].set_ylabel("‖Δw‖ / ‖w‖")
    axes[1].set_ylabel("lr / rms(w)")
    for panel in axes:
        finish(panel)
    return figure


# ----------------------------------------------------------------------------------------- noise levels (Eq. 21)


def draw_gradients(runs: Sequence[PlottedRun]) -> Figure:
    """Draw the norm of the gradient of each bin of noise levels."""
    figure, [axes] = panels(["Gradient per noise level" + _time(runs)])
    for name, color, record in curves_of(runs):
        draw_levels(axes, record["noise_levels"]["gradient_norm"], color=color, marker="o", label=name)
    noise_axis(axes)
    axes.set_ylabel("norm of the gradient of a bin's mean loss")
    finish(axes, log=True, legend=False)
    style_legend(axes, {}, beside=True)
    return figure


def draw_uncertainty(runs: Sequence[PlottedRun]) -> Figure:
    """Draw the loss at each noise level, and the network's own estimate e^u over it: they meet at the optimum."""
    figure, [axes] = panels(["Loss per noise level, and $e^{u(σ)}$ over it" + _time(runs)])
    for name, color, record in curves_of(runs):
        draw_levels(axes, record["noise_levels"]["loss"], color=color, marker="o", label=name)
        draw_levels(axes, record["noise_levels"].get("u"), math.exp, color=color, linestyle="--")
    noise_axis(axes)
    axes.set_ylabel("λ(σ) (D − y)² per element")
    finish(axes, log=True, legend=False)
    style_legend(axes, {"loss": "-", "$e^{u(σ)}$, learned": "--"}, beside=True)
    return figure


def _time(runs: Sequence[PlottedRun]) -> str:
    return "" if len(runs) == 1 else ", at the last measurement"


# ------------------------------------------------------------------------------- clipped and non-finite numbers


def draw_clipped_and_nonfinite(runs: Sequence[PlottedRun]) -> Figure:
    """Draw the percentages of activations at the bound of their block, and of gradients that are NaN or infinite."""
    figure, (clipped, nonfinite) = panels(["Clipped activations", "Non-finite gradients"])
    for run in runs:
        style = {"color": run.color, "label": run.name if len(runs) > 1 else None}
        draw_curve(clipped, run.diagnostics, _clipped_percent, time_axis(clipped, runs), **style)
        unit = time_axis(nonfinite, runs)
        draw_curve(nonfinite, run.diagnostics, _steps_percent, unit, **style)
        draw_curve(nonfinite, run.diagnostics, _entries_percent, unit, color=run.color, linestyle="--")
    clipped.set_ylabel("% of the activations that leave blocks")
    nonfinite.set_ylabel("%")
    for panel in (clipped, nonfinite):
        finish(panel, log=False, legend=len(runs) > 1)
        _show_zero(panel)
    style_legend(nonfinite, {"of steps since the last measurement": "-", "of the measured gradients' entries": "--"})
    return figure


def _clipped_percent(record: Record) -> float | None:
    return _percent(record["clipped_activations"])


def _steps_percent(record: Record) -> float | None:
    counts = record["nonfinite"]
    return 100 * counts["nonfinite_steps"] / counts["steps"] if counts["steps"] else None


def _entries_percent(record: Record) -> float | None:
    return _percent(record["nonfinite"]["entries"])


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _show_zero(axes: Axes) -> None:
    """Put a line of zeros at the bottom, not in the middle of an arbitrary range."""
    if not any((np.asarray(line.get_ydata()) > 0).any() for line in axes.lines):
        axes.set_ylim(-0.05, 1)
