"""The figure of a sweep: curves as in Figure 5 of the paper, and a map of two quantities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgba

from edm2.sweep.sweep import Point, ScoredPoint, Sweep
from edm2.tools.figures.style import BLUE, GRAY, ORANGE, save_figure, styled

MAX_NAMED = 8
"""Curves with a line in the legend; more would hide the figure."""

MAX_LEGEND_INSIDE = 4
"""Lines of a legend that fit beside the curves; a longer one goes below the figure."""

NEAR_END = 0.15
"""Fraction of a curve's width at both ends where a centred text would leave the figure."""


@dataclass(frozen=True)
class Quantity:
    """A quantity that a sweep varies."""

    label: str
    of: Callable[[Point], float]
    """Function to its value at a point, in units of the axis."""
    name: Callable[[float], str]
    """Function to a value in words."""


SIGMA_REL = Quantity("EMA length σ_rel (% of training)", lambda point: 100 * point.sigma_rel, "EMA {:g}%".format)
GUIDANCE = Quantity("guidance weight", lambda point: point.guidance, "guidance {:g}".format)
GUIDE_SIGMA_REL = Quantity(
    "EMA length of the guide (%)", lambda point: 100 * point.used_guide_sigma_rel, "guide's EMA {:g}%".format
)
TIME = Quantity("images seen (thousands)", lambda point: point.images_seen / 1000, "{:g}k images".format)


def plot_sweep(path: Path, sweep: Sweep, others: dict[str, Sequence[ScoredPoint]] | None = None) -> None:
    """Draw a sweep and save the figure.

    Left: distance against EMA length (or the first quantity that varies), one curve for each value of all else, with a
    band of two standard deviations and its minimum marked. Right, where there is something to show: the map of two
    quantities chosen together, or the best EMA length against time. Scored points of `others`, such as sweeps of other
    configurations, have one colour each.
    """
    varied = _varied(sweep.averages)
    chosen = [q for q in varied if q is not TIME]
    x = (varied or [SIGMA_REL])[0]
    moving = TIME in varied and x is SIGMA_REL
    has_map = len(chosen) > 1
    columns = 1 + (has_map or moving)
    figure, panels = plt.subplots(1, columns, figsize=(6.4 + 5.2 * (columns - 1), 4), layout="constrained")
    panels = np.atleast_1d(panels)
    _draw_curves(panels[0], sweep, x, [q for q in varied if q is not x], others or {})
    if has_map:
        _draw_map(panels[1], sweep, chosen[0], chosen[1], varied)
    elif moving:
        _draw_optimum(panels[1], sweep)
    save_figure(figure, path)


def _varied(results: Sequence[ScoredPoint]) -> list[Quantity]:
    """Quantities in which points differ; the guide's EMA length only if it was chosen, else it is the network's."""
    chosen = any(result.point.guide_sigma_rel is not None for result in results)
    quantities = (SIGMA_REL, GUIDANCE, GUIDE_SIGMA_REL, TIME) if chosen else (SIGMA_REL, GUIDANCE, TIME)
    return [q for q in quantities if len({q.of(result.point) for result in results}) > 1]


# ------------------------------------------------------------------------------------------------------- curves


def _draw_curves(
    axes: plt.Axes, sweep: Sweep, x: Quantity, rest: Sequence[Quantity], others: dict[str, Sequence[ScoredPoint]]
) -> None:
    styled(axes)
    curves = _curves(sweep.averages, rest)
    single = len(curves) == 1
    colors = [BLUE] if single else plt.get_cmap("viridis")(np.linspace(0, 0.88, len(curves)))
    for (name, results), color in zip(curves.items(), colors, strict=True):
        label = name or ("reconstructed EMA" if x is SIGMA_REL else sweep.title)
        _draw_curve(axes, results, x, color, label if len(curves) <= MAX_NAMED else None, with_value=single)
    if not single:
        best = sweep.best
        _mark(axes, x.of(best.point), best.distance, "black")
    for number, (name, other) in enumerate(others.items()):
        _draw_other(axes, name, other, x, plt.get_cmap("tab10")(number + 1))
    _draw_levels(axes, sweep)
    axes.set_xlabel(x.label)
    axes.set_ylabel(sweep.title)
    axes.set_title(
        "Quality against EMA length, chosen after training" if x is SIGMA_REL else f"Quality against {x.label}"
    )
    names = axes.get_legend_handles_labels()[1]
    if len(names) > MAX_LEGEND_INSIDE:
        columns = _columns(names, axes.get_figure().get_figwidth())
        axes.get_figure().legend(frameon=False, fontsize="small", loc="outside lower left", ncols=columns)
    elif names:
        axes.legend(fontsize="small", edgecolor="none", framealpha=0.9)  # lines may run behind it


def _columns(names: Sequence[str], inches: float) -> int:
    """Columns of a legend that stay within the figure: 15 letters take an inch, the sample of a line as much as 8."""
    return max(1, min(5, int(15 * inches / (max(map(len, names)) + 8))))


def _draw_other(axes: plt.Axes, name: str, results: Sequence[ScoredPoint], x: Quantity, color: object) -> None:
    """Draw another sweep in one colour, from pale to full; of many curves only the last is in the legend."""
    curves = _curves(results, [q for q in _varied(results) if q is not x])
    for (which, curve), alpha in zip(curves.items(), np.linspace(1, 0.3, len(curves))[::-1], strict=True):
        label = f"{name}, {which}" if which else name
        named = len(curves) <= MAX_NAMED or alpha == 1
        _draw_curve(axes, curve, x, to_rgba(color, alpha), label if named else None, with_value=False)


def _draw_levels(axes: plt.Axes, sweep: Sweep) -> None:
    """Draw raw weights and real images as lines; one that would squash the curves is named in the legend only."""
    low, high = axes.dataLim.intervaly
    reach = (high - low) / 2 or 1
    shown = [low, high]
    several = len({result.point.images_seen for result in sweep.averages}) > 1
    raw = "raw weights at the end" if several else "raw weights"
    levels = [] if sweep.raw is None else [(raw, sweep.raw.distance, ORANGE, "--")]
    levels += [] if sweep.real_data_fd is None else [("real images", sweep.real_data_fd, GRAY, ":")]
    for name, value, color, style in levels:
        where = ", below" if value < low - reach else ", above" if value > high + reach else ""
        axes.axhline(value, color=color, linestyle=style, label=f"{name} ({value:.4g}{where})")
        shown += [] if where else [value]
    axes.set_ylim(min(shown) - 0.3 * reach, max(shown) + 0.3 * reach)


def _curves(results: Sequence[ScoredPoint], rest: Sequence[Quantity]) -> dict[str, list[ScoredPoint]]:
    """Group points that agree in everything but the x axis, by what they agree in."""
    ordered = sorted(results, key=lambda result: [q.of(result.point) for q in rest])
    curves: dict[str, list[ScoredPoint]] = {}
    for result in ordered:
        curves.setdefault(", ".join(q.name(q.of(result.point)) for q in rest), []).append(result)
    return curves


def _draw_curve(
    axes: plt.Axes, results: Sequence[ScoredPoint], x: Quantity, color: object, label: str | None, with_value: bool
) -> None:
    results = sorted(results, key=lambda result: x.of(result.point))
    xs, distances = [x.of(result.point) for result in results], [result.distance for result in results]
    axes.plot(xs, distances, "o-", color=color, markersize=3.5, label=label)
    if all(result.score.deviation is not None for result in results):
        errors = 2 * np.array([result.score.deviation for result in results])
        axes.fill_between(xs, distances - errors, distances + errors, color=color, alpha=0.15, linewidth=0)
    lowest = int(np.argmin(distances))
    _mark(axes, xs[lowest], distances[lowest], color)
    if with_value:
        text = f"{distances[lowest]:.4g} at {x.name(round(xs[lowest], 2))}"
        below = {"xytext": (0, -8), "textcoords": "offset points", "va": "top"}  # where the curve is not
        aligned = _alignment(lowest, xs)
        axes.annotate(text, (xs[lowest], distances[lowest]), ha=aligned, color=color, **below)


def _alignment(lowest: int, xs: Sequence[float]) -> str:
    """Alignment of the text at a minimum: near an end of the curve inwards, so that it stays in the figure."""
    width = xs[-1] - xs[0]
    fraction = (xs[lowest] - xs[0]) / width if width else 0.5
    return "left" if fraction < NEAR_END else "right" if fraction > 1 - NEAR_END else "center"


def _mark(axes: plt.Axes, x: float, y: float, color: object) -> None:
    axes.plot(x, y, "o", color=color, markersize=9, fillstyle="none")


# ------------------------------------------------------------------------------------------------- second panel


def _draw_optimum(axes: plt.Axes, sweep: Sweep) -> None:
    """Draw the best EMA length at each time."""
    styled(axes)
    times = sorted({result.point.images_seen for result in sweep.averages})
    groups = [[result for result in sweep.averages if result.point.images_seen == time] for time in times]
    best = [min(group, key=lambda result: result.distance) for group in groups]
    sigma_rels = [SIGMA_REL.of(result.point) for result in best]
    axes.plot([TIME.of(result.point) for result in best], sigma_rels, "o-", color=BLUE)
    for number, (result, sigma_rel) in enumerate(zip(best, sigma_rels, strict=True)):
        beside = 8 if number % 2 == 0 else -16  # above and below in turn: neighbours may be near
        text = {"xytext": (0, beside), "textcoords": "offset points", "ha": "center", "fontsize": "small"}
        axes.annotate(f"{result.distance:.4g}", (TIME.of(result.point), sigma_rel), **text)
    axes.set_ylim(0, 1.1 * max(SIGMA_REL.of(result.point) for result in sweep.averages))
    axes.margins(x=0.1)
    axes.set_xlabel(TIME.label)
    axes.set_ylabel("best EMA length (%)")
    axes.set_title("The best length in the course of training")


def _draw_map(axes: plt.Axes, sweep: Sweep, x: Quantity, y: Quantity, varied: Sequence[Quantity]) -> None:
    """Draw distance against two quantities, all others as at the best point."""
    best = sweep.best.point
    fixed = [q for q in varied if q not in (x, y) and (q is not GUIDE_SIGMA_REL or best.guide_sigma_rel is not None)]
    results = [r for r in sweep.averages if all(_agrees(q, r.point, best) for q in fixed)]
    values = {(x.of(r.point), y.of(r.point)): r.distance for r in results}
    columns, rows = sorted({column for column, _ in values}), sorted({row for _, row in values})
    if len(values) == len(columns) * len(rows):
        grid = [[values[column, row] for column in columns] for row in rows]
        shown = axes.pcolormesh(columns, rows, grid, cmap="viridis_r", shading="nearest")
    else:  # a search looks closer here than there
        xs, ys = zip(*values, strict=True)
        shown = axes.scatter(xs, ys, c=list(values.values()), cmap="viridis_r", s=70, edgecolors="white")
    axes.plot(x.of(best), y.of(best), "o", color="white", markeredgecolor="black", markersize=9)
    axes.get_figure().colorbar(shown, ax=axes, label=sweep.title)
    axes.set_xlabel(x.label)
    axes.set_ylabel(y.label)
    axes.set_title(f"Lowest: {sweep.best.distance:.4g} at {x.name(x.of(best))}, {y.name(y.of(best))}")


def _agrees(quantity: Quantity, point: Point, best: Point) -> bool:
    """Return True if a point belongs on the map; without guidance, the guide's EMA length does not matter."""
    if quantity is GUIDE_SIGMA_REL and point.guidance == 1:
        return True
    return quantity.of(point) == quantity.of(best)
