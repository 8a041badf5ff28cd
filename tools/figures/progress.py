"""Figures of what every run reports: losses, learning rate, speed."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from edm2.tools.figures.panels import draw_curve, finish, panels, style_legend, time_axis
from edm2.tools.figures.runs import PlottedRun
from edm2.tools.figures.style import BLUE, ORANGE

HELD_OUT = "held-out images, averaged weights, no dropout"


def draw_number(runs: Sequence[PlottedRun], *, key: str, title: str, label: str) -> Figure:
    """Draw one number of each report."""
    figure, [axes] = panels([title])
    unit = time_axis(axes, runs)
    for run in runs:
        draw_curve(axes, run.stats, lambda r: r.get(key), unit, color=run.color, label=run.name)
    axes.set_ylabel(label)
    finish(axes, log=False, legend=len(runs) > 1)
    return figure


def draw_error(runs: Sequence[PlottedRun]) -> Figure:
    """Draw the error in training, and that of averaged weights on held-out images where it was measured."""
    figure, [axes] = panels(["Error in training and on held-out images"])
    unit = time_axis(axes, runs)
    single = len(runs) == 1
    for run in runs:
        trained = {"color": BLUE, "label": "in training"} if single else {"color": run.color, "label": run.name}
        held_out = {"color": ORANGE, "label": HELD_OUT} if single else {"color": run.color, "linestyle": ":"}
        draw_curve(axes, run.stats, lambda r: r.get("error"), unit, **trained)
        draw_curve(axes, run.stats, lambda r: r.get("holdout_error"), unit, **held_out)
    axes.set_ylabel("error (1: a network that knows nothing)")
    finish(axes, log=False)
    if not single:
        style_legend(axes, {"in training": "-", HELD_OUT: ":"})
    return figure


def draw_holdout(runs: Sequence[PlottedRun]) -> Figure:
    """Draw the mean loss over noise levels, on held-out and on training images.

    Unlike the training loss, it has the same meaning for every weighting.
    """
    figure, [axes] = panels(["Loss on held-out and on training images"])
    unit = time_axis(axes, runs)
    single = len(runs) == 1
    for run in runs:
        held_out = {"color": ORANGE, "label": "held-out images"} if single else {"color": run.color, "label": run.name}
        trained = {"color": BLUE, "label": "training images"} if single else {"color": run.color, "linestyle": ":"}
        draw_curve(axes, run.stats, lambda r: r.get("holdout_loss"), unit, **held_out)
        draw_curve(axes, run.stats, lambda r: r.get("train_loss"), unit, **trained)
    axes.set_ylabel("λ(σ) (D − y)², mean over noise levels")
    finish(axes)
    if not single:
        style_legend(axes, {"held-out images": "-", "training images": ":"})
    return figure
