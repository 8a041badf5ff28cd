"""What each noise level asks of the network, and how u(sigma) evens it out (Eq. 21)."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from edm2.tools.figures.panels import curves_of, draw_levels, finish, noise_axis, panels, style_legend
from edm2.tools.figures.runs import PlottedRun


def draw_gradients(runs: Sequence[PlottedRun]) -> Figure:
    """The norm of the gradient that each bin of noise levels asks for."""
    figure, [axes] = panels(["Gradient per noise level" + _when(runs)])
    for name, color, record in curves_of(runs):
        draw_levels(axes, record["noise_levels"]["gradient_norm"], color=color, marker="o", label=name)
    noise_axis(axes)
    axes.set_ylabel("norm of the gradient of a bin's mean loss")
    finish(axes, log=True, legend=False)
    style_legend(axes, beside=True)
    return figure


def draw_uncertainty(runs: Sequence[PlottedRun]) -> Figure:
    """The loss at each noise level, with what the network expects, e^u, over it: they meet at the optimum."""
    figure, [axes] = panels(["Loss per noise level, and $e^{u(σ)}$ over it" + _when(runs)])
    for name, color, record in curves_of(runs):
        draw_levels(axes, record["noise_levels"]["loss"], color=color, marker="o", label=name)
        draw_levels(axes, record["noise_levels"].get("u"), math.exp, color=color, linestyle="--")
    noise_axis(axes)
    axes.set_ylabel("λ(σ) (D − y)² per element")
    finish(axes, log=True, legend=False)
    style_legend(axes, beside=True, **{"loss": "-", "$e^{u(σ)}$, learned": "--"})
    return figure


def _when(runs: Sequence[PlottedRun]) -> str:
    return "" if len(runs) == 1 else ", at the last measurement"
