"""How far a step moves the weights, and what the learning rate is worth (Section 2.3)."""

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure

from edm2.tools.figures.panels import draw_buckets, draw_curve, finish, panels, time_axis
from edm2.tools.figures.runs import PlottedRun
from edm2.tools.figures.style import GRAY


def draw_updates(runs: Sequence[PlottedRun]) -> Figure:
    """Relative update and effective learning rate of all weights of a block resolution together."""
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
