"""What had to be clipped or replaced: shares that should stay near zero."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edm2.tools.figures.panels import draw_curve, finish, panels, style_legend, time_axis
from edm2.tools.figures.runs import PlottedRun
from edm2.training.run.logging import Record


def draw_shares(runs: Sequence[PlottedRun]) -> Figure:
    """The shares of activations at the bound of their block, and of gradients that are NaN or infinite."""
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
    style_legend(nonfinite, **{"of steps since the last measurement": "-", "of the measured gradients' entries": "--"})
    return figure


def _clipped_percent(record: Record) -> float | None:
    share = record["clipped_activations"]
    return None if share is None else 100 * share


def _steps_percent(record: Record) -> float | None:
    counts = record["nonfinite"]
    return 100 * counts["nonfinite_steps"] / counts["steps"] if counts["steps"] else None


def _entries_percent(record: Record) -> float | None:
    share = record["nonfinite"]["entries"]
    return None if share is None else 100 * share


def _show_zero(axes: Axes) -> None:
    """Where all is well, a line at the bottom, not in the middle of an arbitrary range."""
    if not any(y > 0 for line in axes.lines for y in line.get_ydata()):
        axes.set_ylim(-0.05, 1)
