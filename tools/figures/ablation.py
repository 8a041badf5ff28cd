"""The figures of a study: distance against EMA length (Figure 5a of the paper), loss against noise level (Min-SNR)."""

from collections.abc import Iterable, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from edm2.study.summary import Spread, Summary
from edm2.tools.figures.style import GRAY, colors, styled

MARKERS = "os^Dv"
"""Of one curve after the other, which tell neighbouring colours apart."""

WIDE = 4.0
"""Values that differ by more than this factor have a logarithmic axis, or none in common."""


def draw_distances(summaries: Sequence[Summary], title: str, real_data_fd: float | None = None) -> Figure:
    """One curve per variant: the mean over seeds, with a band from the lowest to the highest, its minimum marked.

    Crosses at length 0 are the weights without averaging, stars the traditional EMA of variants that keep one.

    Args:
        summaries: Variants with at least one finished run.
        title: What the distance is called.
        floor: That of as many real images.
    """
    figure, axes = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
    styled(axes)
    for summary, marker, color in _styles(summaries):
        curve = {100 * length: value for length, value in summary.curve.items()}
        _draw_curve(axes, curve, marker, color, _name(summary))
        _mark(axes, 100 * summary.best, summary.at(summary.best).mean, color)
        _draw_others(axes, summary, color)
    shown = [value for line in axes.lines for value in line.get_ydata()]
    if max(shown) > WIDE * min(shown):
        _logarithmic(axes)
    if real_data_fd is not None:
        _draw_floor(axes, real_data_fd, min(shown))
    axes.set_xlabel("EMA length σ_rel (% of training); 0: without averaging")
    axes.set_ylabel(title)
    axes.set_title("Quality against EMA length")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _styles(summaries: Sequence[Summary]) -> Iterable[tuple[Summary, str, object]]:
    """Each with its marker and its colour."""
    return zip(summaries, cycle(MARKERS), colors(len(summaries)), strict=False)


def _name(summary: Summary) -> str:
    value = summary.over_seeds(lambda outcome: outcome.distance)
    deviation = "" if value.deviation is None else f" ± {value.deviation:.2g}"
    return f"{summary.label}  ({value.mean:.4g}{deviation})"


def _draw_curve(axes: plt.Axes, curve: dict[float, Spread], marker: str, color: object, label: str | None) -> None:
    places, values = list(curve), list(curve.values())
    axes.plot(places, [value.mean for value in values], marker=marker, color=color, markersize=3, label=label)
    lows, highs = [value.lowest for value in values], [value.highest for value in values]
    axes.fill_between(places, lows, highs, color=color, alpha=0.13, linewidth=0)


def _mark(axes: plt.Axes, x: float, y: float, color: object) -> None:
    axes.plot(x, y, "o", color=color, markersize=9, fillstyle="none")


def _draw_others(axes: plt.Axes, summary: Summary, color: object) -> None:
    """Averages that are not reconstructed."""
    if raw := summary.over_seeds(lambda outcome: outcome.raw):
        axes.plot(0, raw.mean, "x", color=color, markersize=6)
    if traditional := summary.over_seeds(lambda outcome: outcome.traditional):
        length = summary.over_seeds(lambda outcome: outcome.traditional_length).mean
        axes.plot(100 * length, traditional.mean, "*", color=color, markersize=9)


def draw_losses(summaries: Sequence[Summary]) -> Figure:
    """Loss per noise level, weighted as by EDM whatever was trained with: left as it is, right relative to the first
    variant with the same seed.

    Args:
        summaries: Variants with at least one finished run, the reference first.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained")
    for summary, marker, color in _styles(summaries):
        _draw_curve(left, summary.losses, marker, color, summary.label)
        _draw_curve(right, summary.losses_over(summaries[0]), marker, color, None)
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


def _logarithmic(axes: plt.Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_floor(axes: plt.Axes, real_data_fd: float, lowest: float) -> None:
    """What real images score; far below all curves it is only told, as it would press them together."""
    is_far = WIDE * real_data_fd < lowest
    label = f"real images ({real_data_fd:.4g}{', below' if is_far else ''})"
    if is_far:
        axes.plot([], [], color=GRAY, linestyle=":", label=label)
    else:
        axes.axhline(real_data_fd, color=GRAY, linestyle=":", label=label)
