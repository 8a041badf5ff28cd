"""The figures of a study: distance against EMA length (Figure 5a of the paper), loss against noise level (Min-SNR)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from edm2.study.study import SIGMAS
from edm2.study.summary import Summary, mean_and_deviation
from edm2.tools.figures.style import GRAY, colors, styled

WIDE = 4.0
"""Factor between values from which the axis is logarithmic."""


def draw_distances(summaries: Sequence[Summary], title: str, real_data_fd: float | None = None) -> Figure:
    """Draw one curve per variant: the mean over seeds, with a band from the lowest to the highest, its minimum marked.

    Crosses at 0 are the weights without averaging, stars the traditional EMA of variants that keep one, the dotted line
    is the distance of as many real images. All variants have a finished run.
    """
    figure, axes = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
    styled(axes)
    for summary, color in zip(summaries, colors(len(summaries)), strict=True):
        lowest = mean_and_deviation(summary.over_seeds(lambda outcome: outcome.distance), ".4g")
        _draw_curve(axes, 100 * np.array(list(summary.curve)), summary.distances, color, f"{summary.label}  ({lowest})")
        axes.plot(100 * summary.best, summary.curve[summary.best], "o", color=color, markersize=9, fillstyle="none")
        if raw := summary.over_seeds(lambda outcome: outcome.raw):
            axes.plot(0, np.mean(raw), "x", color=color)
        if traditional := summary.over_seeds(lambda outcome: outcome.traditional):
            sigma_rel = np.mean(summary.over_seeds(lambda outcome: outcome.traditional_length))
            axes.plot(100 * sigma_rel, np.mean(traditional), "*", color=color, markersize=9)
    values = [value for line in axes.lines for value in line.get_ydata()]
    if max(values) > WIDE * min(values):
        axes.set_yscale("log")
    if real_data_fd is not None:
        is_near = WIDE * real_data_fd > min(values)  # a line far below would press the curves together
        line = axes.axhline if is_near else axes.plot
        line(real_data_fd if is_near else [], color=GRAY, linestyle=":", label=f"real images ({real_data_fd:.4g})")
    axes.set(xlabel="EMA length σ_rel (% of training); 0: without averaging", ylabel=title)
    axes.set_title("Quality against EMA length")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def draw_losses(summaries: Sequence[Summary]) -> Figure:
    """Draw loss per noise level with EDM's weight, and its ratio to the first variant with the same seed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained")
    for summary, color in zip(summaries, colors(len(summaries)), strict=True):
        _draw_curve(left, SIGMAS, summary.losses, color, summary.label)
        _draw_curve(right, SIGMAS, summary.losses_over(summaries[0]), color, None)
    held_out = all(outcome.held_out for summary in summaries for outcome in summary.outcomes)
    left.set(title=f"Loss on {'held-out' if held_out else 'training'} images", ylabel="λ(σ) E (D − y)², λ of EDM")
    left.set_ylim(bottom=0)
    right.set(title=f"Relative to {summaries[0].label}", ylabel="ratio of losses")
    for axes in (left, right):
        styled(axes)
        axes.set(xscale="log", xlabel="noise level σ")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _draw_curve(axes: plt.Axes, xs: Sequence[float] | np.ndarray, values: np.ndarray, color, label: str | None) -> None:
    """Draw the mean of values [runs, points] and a band from the lowest to the highest."""
    axes.plot(xs, values.mean(axis=0), "o-", color=color, markersize=3, label=label)
    axes.fill_between(xs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.13, linewidth=0)
