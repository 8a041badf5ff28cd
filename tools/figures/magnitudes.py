"""Activation and weight magnitudes in the course of training: the paper's Figures 3 and 15."""

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure

from edm2.tools.figures.panels import draw_buckets, finish, panels
from edm2.tools.figures.runs import PlottedRun


def draw_activations(runs: Sequence[PlottedRun]) -> Figure:
    """The largest and the mean magnitude of the features of each block resolution, in the averaged network."""
    figure, axes = panels(["Activations, largest feature", "Activations, mean of features"])
    draw_buckets(axes[0], runs, lambda r: r["activations"]["max"], max)
    draw_buckets(axes[1], runs, lambda r: r["activations"]["mean"], fmean)
    axes[0].set_ylabel("magnitude √(mean h²)")
    for panel in axes:
        finish(panel)
    return figure


def draw_weights(runs: Sequence[PlottedRun]) -> Figure:
    """The same of the weights' output units, in the averaged network as in the paper, and as the optimizer sees
    them."""
    figure, axes = panels([
        "Averaged weights, largest unit", "Averaged weights, mean of units",
        "Raw weights, largest unit", "Raw weights, mean of units",
    ])  # fmt: skip
    rows = zip(("ema", "ema", "raw", "raw"), ("max", "mean", "max", "mean"), (max, fmean, max, fmean), strict=True)
    for panel, (kind, statistic, combine) in zip(axes, rows, strict=True):
        draw_buckets(panel, runs, lambda r, k=kind, s=statistic: r["weights"][k][s], combine)
        finish(panel, legend=panel is axes[0])
    for panel in axes[::2]:
        panel.set_ylabel("magnitude √(mean w²)")
    return figure
