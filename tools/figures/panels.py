"""Parts of the figures of runs: panels, curves against images seen, curves against noise levels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from edm2.tools.figures.runs import PlottedRun
from edm2.tools.figures.style import PALETTE, styled
from edm2.training.run.logging import Record

WIDE = 20
"""Ratio of the largest to the smallest value above which an axis is logarithmic."""

Values = Mapping[str, "float | None"]
"""Numbers of a record by bucket or by noise level; None where one was not finite."""


def panels(titles: Sequence[str], columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per title, in rows."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    size = (6.4 + 5.2 * (columns - 1), 4 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    axes = list(grid.flat)[: len(titles)]
    for panel, title in zip(axes, titles, strict=True):
        styled(panel)
        panel.set_title(title)
    return figure, axes


def finish(axes: Axes, *, log: bool | None = None, legend: bool = True) -> None:
    """Scale the vertical axis to the curves, logarithmic by default if they span a wide range, and name them."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines] or [np.zeros(0)])
    positive = values[np.isfinite(values) & (values > 0)]
    if log or (log is None and len(positive) and positive.max() > WIDE * positive.min()):
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, positive)
    elif len(positive) and not (values < 0).any():
        axes.set_ylim(0, 1.1 * positive.max())
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def _plain_ticks(axis: Axis, values: np.ndarray) -> None:
    """Label a logarithmic axis of less than four decades with 0.2 and 0.5 instead of powers of ten."""
    axis.set_minor_formatter(NullFormatter())
    if values.max() < 1e4 * values.min():
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


# ------------------------------------------------------------------------------------------- against images seen


def time_axis(axes: Axes, runs: Sequence[PlottedRun]) -> float:
    """Label the horizontal axis; return the images of its unit."""
    last = max((r["images_seen"] for run in runs for r in [*run.stats[-1:], *run.diagnostics[-1:]]), default=0)
    unit, name = (1e6, "millions") if last >= 2e6 else (1e3, "thousands")
    axes.set_xlabel(f"images seen ({name})")
    return unit


def draw_curve(
    axes: Axes, records: Iterable[Record], value: Callable[[Record], float | None], unit: float, **style: Any
) -> None:
    """Draw a number against images seen; records without it are passed over."""
    points = [(record["images_seen"] / unit, value(record)) for record in records]
    points = [(x, y) for x, y in points if y is not None]
    if points:
        style.setdefault("marker", "o" if len(points) < 3 else "")
        axes.plot(*zip(*points, strict=True), **style)


def draw_buckets(
    axes: Axes, runs: Sequence[PlottedRun], buckets: Callable[[Record], Values | None], combine: Callable
) -> None:
    """Draw numbers per block resolution against images seen.

    One run has a curve for each bucket. Several runs have one curve each, `combine` of the buckets, with the buckets
    faintly behind it.
    """

    def of_bucket(name: str) -> Callable[[Record], float | None]:
        return lambda record: (buckets(record) or {}).get(name)

    unit = time_axis(axes, runs)
    single = len(runs) == 1
    for run in runs:
        names = _bucket_names(run.diagnostics, buckets)
        for name, style in zip(names, _bucket_styles(names), strict=True):
            faint = {"color": run.color, "linewidth": 0.7, "alpha": 0.3, "marker": ""}
            draw_curve(axes, run.diagnostics, of_bucket(name), unit, **({"label": name, **style} if single else faint))
        if not single:
            style = {"color": run.color, "label": run.name, "linewidth": 1.8}
            draw_curve(axes, run.diagnostics, lambda r: _combined(buckets(r), combine), unit, **style)


def _bucket_names(records: Iterable[Record], buckets: Callable[[Record], Values | None]) -> list[str]:
    """Names in the network's order: encoder downwards, decoder upwards."""
    return list(dict.fromkeys(name for record in records for name in buckets(record) or ()))


def _bucket_styles(names: Sequence[str]) -> list[dict[str, Any]]:
    """Colour by resolution; the encoder's lines are solid, the decoder's dashed."""
    resolutions = list(dict.fromkeys(name.split()[-1] for name in names))
    color = {resolution: PALETTE[i % len(PALETTE)] for i, resolution in enumerate(resolutions)}
    return [{"color": color[name.split()[-1]], "linestyle": "-" if "Enc" in name else "--"} for name in names]


def _combined(values: Values | None, combine: Callable) -> float | None:
    numbers = [value for value in (values or {}).values() if value is not None]
    return combine(numbers) if numbers else None


# ------------------------------------------------------------------------------------------ against noise levels


def noise_axis(axes: Axes) -> None:
    """Label the horizontal axis, once the curves are drawn."""
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis, np.concatenate([line.get_xdata() for line in axes.lines] or [np.ones(1)]))
    axes.set_xlabel("noise level σ")


def draw_levels(axes: Axes, levels: Values | None, transform: Callable = float, **style: Any) -> None:
    """Draw numbers against noise levels."""
    points = [(float(sigma), transform(value)) for sigma, value in (levels or {}).items() if value is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **{"markersize": 3.5, **style})


def some_times(records: Sequence[Record], count: int = 5) -> list[Record]:
    """The last record and some before it, evenly spaced."""
    chosen = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int))
    return [records[i] for i in chosen]


def curves_of(runs: Sequence[PlottedRun]) -> list[tuple[str, Any, Record]]:
    """Curves of a figure against noise levels as (name, colour, record): some times of one run, the last of several."""
    if len(runs) > 1:
        return [(run.name, run.color, run.diagnostics[-1]) for run in runs]
    records = some_times(runs[0].diagnostics)
    shades = plt.get_cmap("viridis")(np.linspace(0.88, 0, len(records)))
    return [(images_text(r["images_seen"]), shade, r) for r, shade in zip(records, shades, strict=True)]


def images_text(images: int) -> str:
    """ "12,800 images", or "1.5 million images"."""
    return f"{images:,} images" if images < 1e6 else f"{images / 1e6:.4g} million images"


def style_legend(axes: Axes, styles: Mapping[str, str], beside: bool = False) -> None:
    """Explain line styles, {"loss": "-"}, below the legend of the colours; `beside` the panel if it is full."""
    handles = [Line2D([], [], color="#444444", linestyle=line, label=name) for name, line in styles.items()]
    old = axes.get_legend_handles_labels()[0]
    position = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if beside else {}
    axes.legend(handles=[*old, *handles], frameon=False, fontsize="small", **position)
