"""Plots of a page as specifications of Vega-Lite (https://vega.github.io/vega-lite): data and encodings, no drawing."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edm2.report.records import RunRecords
from edm2.training.run.logging import Record

MOST_POINTS = 400
"""Points of a curve; of more, some evenly spaced ones are shown."""

WIDE = 20
"""Ratio of the largest to the smallest value above which an axis is logarithmic."""

Row = dict[str, Any]
"""A point: x, y, and the names of its curve."""

Spec = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A plot and what it says to those who do not see it."""

    title: str
    note: str
    """How to read it."""
    spec: Spec


def charts_of(runs: Sequence[RunRecords]) -> list[Chart]:
    """Plots of what the runs have recorded, several in the same plot; those without data are left out."""
    made = [
        _against_time(runs, "Error", "1: a network that knows nothing; 0: perfect",
                      {"training": _stat("error"), "held-out": _stat("holdout_error")}, zero=True),
        _against_time(runs, "Loss at fixed noise levels", "averaged weights; of one meaning for all weightings",
                      {"training images": _stat("train_loss"), "held-out images": _stat("holdout_loss"),
                       "held-out, conditions of others": _stat("holdout_loss_shuffled")}),
        _against_time(runs, "Training objective", "what is minimized; comparable between runs of one weighting only",
                      {"": _stat("loss")}),
        _loss_per_level(runs),
        _held_out_per_level(runs),
        _against_level(runs, "Gradient per noise level", "norm of the gradient of a bin's mean loss; level is good",
                       {"": "gradient_norm"}),
        _against_time(runs, "Activations", "magnitude of the largest feature, largest over blocks; level is good",
                      {"": _diagnostic(lambda r: max(_finite(r["activations"]["max"].values())))}),
        _against_time(runs, "Relative update of a step", "mean over blocks of the change of a weight over its size",
                      {"": _diagnostic(lambda r: _mean(r["updates"]["relative"].values()))}),
        _against_time(runs, "Gradient norm", "of a step, all weights together", {"": _stat("grad_norm")}),
        _against_time(runs, "Learning rate", "ramp-up, constant, decay", {"": _stat("lr")}, zero=True),
        _against_time(runs, "Speed", "images per second", {"": _stat("images_per_second")}, zero=True),
    ]  # fmt: skip
    return [chart for chart in made if chart is not None]


Values = Callable[[RunRecords], Iterable[tuple[int, Any]]]
"""Function from a run to pairs of images seen and a number, or None."""


def _stat(key: str) -> Values:
    return lambda run: ((record["images_seen"], record.get(key)) for record in run.stats)


def _diagnostic(value: Callable[[Record], float]) -> Values:
    """Read a number of the diagnostics; records of other versions, without it, are passed over."""

    def read(run: RunRecords) -> Iterable[tuple[int, Any]]:
        for record in run.diagnostics:
            try:
                yield record["images_seen"], value(record)
            except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
                continue

    return read


def _against_time(
    runs: Sequence[RunRecords], title: str, note: str, curves: Mapping[str, Values], zero: bool = False
) -> Chart | None:
    rows = []
    for run in runs:
        for name, values in curves.items():
            points = [{"x": x, "y": y, "run": run.name, "curve": name} for x, y in values(run)]
            rows += _thinned(_drawable(points))
    if len({row["x"] for row in rows}) < 2:  # of a single time there is no curve yet
        return None
    x = {"field": "x", "type": "quantitative", "title": "images seen", "axis": {"format": "~s", "tickCount": 6}}
    return _lines(title, note, rows, x, zero)


def _against_level(runs: Sequence[RunRecords], title: str, note: str, curves: Mapping[str, str]) -> Chart | None:
    """Plot the last measurement of the diagnostics against noise level."""
    rows = []
    for run in runs:
        levels = run.diagnostics[-1].get("noise_levels", {}) if run.diagnostics else {}
        for name, key in curves.items():
            change = math.exp if key == "u" else float
            points = [(float(s), change(v)) for s, v in levels.get(key, {}).items() if v is not None]
            rows += _drawable({"x": x, "y": y, "run": run.name, "curve": name} for x, y in points)
    return _lines(title, note, rows, NOISE)


def _loss_per_level(runs: Sequence[RunRecords]) -> Chart | None:
    note = "λ(σ) (D − y)² per element at the last measurement; where u(σ) is learned, e^u meets it"
    return _against_level(runs, "Loss per noise level, and u(σ)", note, {"loss": "loss", "e^u(σ)": "u"})


def _held_out_per_level(runs: Sequence[RunRecords]) -> Chart | None:
    rows = []
    for run in runs:
        last = next((record for record in reversed(run.stats) if "sigmas" in record), {})
        for name, key in (("training images", "train_losses"), ("held-out images", "holdout_losses")):
            points = zip(last.get("sigmas", ()), last.get(key, ()), strict=False)
            rows += _drawable({"x": x, "y": y, "run": run.name, "curve": name} for x, y in points)
    note = "λ(σ) (D − y)² per element; a gap between the curves is what was learned by heart"
    return _lines("Loss per noise level, held out", note, rows, NOISE)


NOISE: Spec = {
    "field": "x", "type": "quantitative", "title": "noise level σ", "scale": {"type": "log", "nice": False},
    "axis": {"values": [m * 10**k for k in range(-3, 3) for m in (1, 2, 5)], "labelExpr": "format(datum.value, '~r')"},
}  # fmt: skip


def _lines(title: str, note: str, rows: list[Row], x: Spec, zero: bool = False) -> Chart | None:
    """Curves in a colour per run and a dash per kind; of one run, a colour per kind. None without points."""
    if not rows:
        return None
    runs, curves = (list(dict.fromkeys(row[key] for row in rows)) for key in ("run", "curve"))
    positive = [row["y"] for row in rows if row["y"] > 0]
    is_log = not zero and len(positive) == len(rows) and max(positive) > WIDE * min(positive)
    scale = {"type": "log"} if is_log else {"zero": zero}
    encoding: Spec = {
        "x": x,
        "y": {"field": "y", "type": "quantitative", "title": None, "scale": scale},
        "tooltip": [{"field": name, "format": "~g"} if name == "y" else {"field": name} for name in rows[0]],
    }
    several = len(runs) > 1
    if several or len(curves) > 1:
        field = "run" if several else "curve"
        encoding["color"] = {"field": field, "type": "nominal", "sort": runs if several else curves, "title": None}
    if several and len(curves) > 1:
        encoding["strokeDash"] = {"field": "curve", "type": "nominal", "sort": curves, "title": None}
    spec = {
        "data": {"values": rows},
        "width": "container",
        "height": 220,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": [{
            "name": "zoom", "bind": "scales",
            "select": {"type": "interval", "zoom": "wheel![event.ctrlKey || event.shiftKey || event.metaKey]"},
        }],
        "mark": {"type": "line", "clip": True, "point": len(rows) < 60},
        "encoding": encoding,
    }  # fmt: skip
    return Chart(title, note, spec)


def curve_over_slider(scores: list[Row], labels: Sequence[str], start: Sequence[int]) -> Spec:
    """The metric against the positions of the EMA slider: the curve of the chosen time and weight above the others.

    Args:
        scores: Points {"position", "y", "run", "time", "guidance"}; the last two are positions of the other sliders.
        labels: EMA length of each position.
        start: Positions of the sliders at first: time, EMA length, guidance.
    """
    chosen = "datum.time == time && datum.guidance == guidance"
    x = {
        "field": "position", "type": "quantitative", "title": None,
        "scale": {"domain": [-0.5, len(labels) - 0.5], "nice": False},
        "axis": {"values": list(range(len(labels))), "grid": False, "labels": False, "ticks": False},
    }  # fmt: skip
    values = [row["y"] for row in scores]
    domain = [min(values), max(values)]  # of all, as a filter may leave no point
    y = {
        "field": "y", "type": "quantitative", "title": None, "scale": {"domain": domain, "nice": True},
        "axis": {"minExtent": 52, "maxExtent": 52, "tickCount": 5},
    }  # fmt: skip
    color = {"field": "run", "type": "nominal", "title": None, "sort": None}
    if len({row["run"] for row in scores}) == 1:
        color["legend"] = None
    line: Spec = {"type": "line", "clip": True}
    tip = [{"field": name} for name in ("run", "length", "y")]
    return {
        "data": {"values": [{**row, "length": labels[row["position"]]} for row in scores]},
        "width": "container",
        "height": 170,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": {"left": 0, "right": 10, "top": 5, "bottom": 2},
        "params": [{"name": n, "value": v} for n, v in zip(("time", "ema", "guidance"), start, strict=True)],
        "encoding": {"x": x, "y": y, "color": color},
        "layer": [
            {"mark": {**line, "opacity": 0.2},
             "encoding": {"detail": [{"field": "time"}, {"field": "guidance"}]}},
            {"transform": [{"filter": chosen}], "mark": {**line, "strokeWidth": 2.5}},
            {"transform": [{"filter": chosen}], "mark": {"type": "point", "filled": True, "size": 60},
             "encoding": {"tooltip": tip}},
            {"transform": [{"filter": f"{chosen} && datum.position == ema"}],
             "mark": {"type": "point", "filled": False, "size": 320, "strokeWidth": 3}},
        ],
    }  # fmt: skip


def _drawable(rows: Iterable[Row]) -> list[Row]:
    """Points whose numbers are finite, rounded to five digits, since each takes room on the page."""
    kept = (row for row in rows if _is_finite(row["x"]) and _is_finite(row["y"]))
    return [
        {**row, "x": row["x"] if isinstance(row["x"], int) else _short(row["x"]), "y": _short(row["y"])} for row in kept
    ]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _thinned(rows: list[Row]) -> list[Row]:
    step = max(1, -(-len(rows) // MOST_POINTS))
    return rows[::-1][::step][::-1]


def _finite(values: Iterable[Any]) -> list[float]:
    return [value for value in values if _is_finite(value)]


def _mean(values: Iterable[Any]) -> float:
    numbers = _finite(values)
    return sum(numbers) / len(numbers)
