"""The figures of a study: distance against EMA length (Figure 5a of the paper), loss against noise level (Min-SNR)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from edm2.study.summary import Spread, Summary
from edm2.tools.figures.style import GRAY, colors, styled

WIDE = 4.0
"""Factor between values from which the axis is logarithmic."""


def draw_distances(summaries: Sequence[Summary], title: str, real_data_fd: float | None = None) -> Figure:
    """Draw one curve per variant: the mean over seeds, with a band from the lowest to the highest, its minimum marked.

    Crosses at 0 are the weights without averaging, stars the traditional EMA of variants that keep one.

    Args:
        summaries: Variants with at least one finished run.
        title: Name of the distance.
        real_data_fd: Distance of as many real images.
    """
    figure, axes = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
    styled(axes)
    for summary, color in zip(summaries, colors(len(summaries)), strict=True):
        lowest = summary.over_seeds(lambda outcome: outcome.distance)
        assert lowest is not None  # all outcomes have one
        deviation = "" if lowest.deviation is None else f" ± {lowest.deviation:.2g}"
        curve = {100 * sigma_rel: value for sigma_rel, value in summary.curve.items()}
        _draw_curve(axes, curve, color, f"{summary.label}  ({lowest.mean:.4g}{deviation})")
        best = 100 * summary.best
        axes.plot(best, curve[best].mean, "o", color=color, markersize=9, fillstyle="none")
        if raw := summary.over_seeds(lambda outcome: outcome.raw):
            axes.plot(0, raw.mean, "x", color=color)
        if traditional := summary.over_seeds(lambda outcome: outcome.traditional):
            length = summary.over_seeds(lambda outcome: outcome.traditional_length)
            assert length is not None  # of the average with that distance
            axes.plot(100 * length.mean, traditional.mean, "*", color=color, markersize=9)
    values = [value for line in axes.lines for value in line.get_ydata()]
    if max(values) > WIDE * min(values):
        axes.set_yscale("log")
    if real_data_fd is not None:
        is_near = WIDE * real_data_fd > min(values)  # a line far below would press the curves together
        line = axes.axhline if is_near else axes.plot
        line(real_data_fd if is_near else [], color=GRAY, linestyle=":", label=f"real images ({real_data_fd:.4g})")
    axes.set_xlabel("EMA length σ_rel (% of training); 0: without averaging")
    axes.set_ylabel(title)
    axes.set_title("Quality against EMA length")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def draw_losses(summaries: Sequence[Summary]) -> Figure:
    """Draw loss per noise level with EDM's weight, and its ratio to the first variant with the same seed.

    Args:
        summaries: Variants with at least one finished run, the reference first.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained")
    for summary, color in zip(summaries, colors(len(summaries)), strict=True):
        _draw_curve(left, summary.losses, color, summary.label)
        _draw_curve(right, summary.losses_over(summaries[0]), color, None)
    for axes in (left, right):
        styled(axes)
        axes.set_xscale("log")
        axes.set_xlabel("noise level σ")
    held_out = all(outcome.held_out for summary in summaries for outcome in summary.outcomes)
    left.set_title(f"Loss on {'held-out' if held_out else 'training'} images")
    left.set_ylabel("λ(σ) E (D − y)², λ of EDM")
    left.set_ylim(bottom=0)
    right.set_title(f"Relative to {summaries[0].label}")
    right.set_ylabel("ratio of losses")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _draw_curve(axes: plt.Axes, curve: dict[float, Spread], color: object, label: str | None) -> None:
    xs, values = list(curve), list(curve.values())
    axes.plot(xs, [value.mean for value in values], "o-", color=color, markersize=3, label=label)
    axes.fill_between(xs, [v.lowest for v in values], [v.highest for v in values], color=color, alpha=0.13, linewidth=0)
