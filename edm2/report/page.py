"""The page: one HTML file that holds its pictures, its plots and the program that draws them."""

import base64
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from edm2 import __version__
from edm2.metrics import Detector
from edm2.post_hoc_ema import atomic_output
from edm2.post_hoc_ema.files import first_line
from edm2.report import charts, stills, summary
from edm2.report.grids import Grids
from edm2.report.pictures import Picture, PictureCache
from edm2.report.records import RunRecords
from edm2.report.scores import best_by_setting
from edm2.sweep.averages import RAW, Averages
from edm2.sweep.sweep import Point, Sweep
from edm2.training import Dataset
from edm2.training.run.inputs import read_inputs

TEMPLATES = Path(__file__).parent / "templates"

MISSING = "the page is made by jinja2 and vl-convert-python: pip install 'edm2[report]'"

LARGE_ERROR = 0.05
"""Error of a reconstructed profile from which a grid says so."""

GRID_WIDTH = 720
"""Pixels that a grid takes on the screen at most."""


class ReportError(ValueError):
    """A page cannot be made; the message is one line with the remedy."""


@dataclass
class ReportedRun:
    """A run on a page, with all that could be opened of it."""

    records: RunRecords
    cache: PictureCache
    averages: Averages | None = None
    grids: Grids | None = None
    sweep: Sweep | None = None
    dataset: Dataset | None = None
    detector: Detector | None = None
    """Features by which training images are near; None: the page has none of them."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what the page lacks."""

    @property
    def name(self) -> str:
        """Name on the page."""
        return self.records.name


@dataclass(frozen=True)
class Axes:
    """Positions of the sliders."""

    lengths: Sequence[float]
    """EMA lengths; 0 for the raw weights."""
    times: Mapping[str, Sequence[int]]
    """Images seen by run, the last at the last position."""
    guidances: Sequence[float] = (1.0,)

    @property
    def time_count(self) -> int:
        """Positions of the time slider."""
        return max(len(times) for times in self.times.values())

    def points(self, run: str) -> dict[tuple[int, int, int], Point]:
        """Points of a run by positions of time, EMA length and guidance; a run with fewer times repeats its first."""
        times = self.times[run]
        padded = [times[0]] * (self.time_count - len(times)) + list(times)
        return {
            (t, e, g): Point(time, length, guidance)
            for t, time in enumerate(padded)
            for e, length in enumerate(self.lengths)
            for g, guidance in enumerate(self.guidances)
        }


Drawn = TypeVar("Drawn")

Commands = Callable[[ReportedRun, Point], Sequence[str]]
"""Function that returns the command lines that draw a point's grid."""


def require_report_packages() -> None:
    """Raise ReportError if a package is missing that makes the page."""
    try:
        import jinja2  # noqa: F401  only to see that it is there
        import vl_convert  # noqa: F401
    except ImportError:
        raise ReportError(MISSING) from None


def write_page(out: Path, runs: Sequence[ReportedRun], axes: Axes | None, commands: Commands) -> int:
    """Write the page of some runs; without `axes` it has no sliders.

    Returns:
        Bytes of the file.

    Raises:
        ReportError: a package is missing.
    """
    require_report_packages()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["src"] = source
    explorer = None if axes is None else explorer_json(runs, axes, commands)
    contexts = [_context(run, axes) for run in runs]
    for number, context in enumerate(contexts):  # runs on the same data show them once
        if any(context["dataset"] == other["dataset"] for other in contexts[:number]):
            context["dataset"] = None
    names = ", ".join(run.name for run in runs)
    texts = {
        name: (TEMPLATES / f"page.{ending}").read_text("utf-8")
        for name, ending in (("css", "css"), ("javascript", "js"))
    }
    html = environment.get_template("page.html").render(
        title=f"edm2 report: {names}",
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        runs=contexts,
        charts=charts.charts_of([run.records for run in runs]),
        explorer=explorer,
        vega=vega_bundle(runs[0].cache.folder),
        **texts,
    )
    with atomic_output(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out.stat().st_size


def source(picture: Picture) -> str:
    """Address of a picture that holds the picture itself."""
    return f"data:image/webp;base64,{base64.b64encode(picture.webp).decode()}"


def vega_bundle(folder: Path) -> str:
    """Return the program that draws the plots, Vega-Embed; a folder keeps it, since bundling takes seconds."""
    import vl_convert

    path = folder / f"vega-{importlib.metadata.version('vl-convert-python')}.js"
    if not path.exists():
        with atomic_output(path) as temporary:
            bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub lacks the default
            temporary.write_text(bundle, encoding="utf-8")
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _context(run: ReportedRun, axes: Axes | None) -> dict[str, Any]:
    """Values of the template for one run; what cannot be drawn becomes a note."""
    records, inputs = run.records, read_inputs(run.records.folder.path)
    context: dict[str, Any] = {"name": run.name, "dataset": None, "neighbours": None}
    context["preset"] = records.config.preset if summary.preset_of(records.config) else None
    context["facts"] = summary.facts(records, run.averages)
    context["settings"] = summary.differing_settings(records, (inputs.get("data") or {}).get("images"))
    context["warnings"] = summary.warnings_about(records)
    context["frames"] = _drawn(run, "No samples over time", lambda: stills.film_strip(records, run.cache))
    dataset, grids, detector = run.dataset, run.grids, run.detector
    if dataset is not None:
        context["dataset"] = _drawn(
            run, "No picture of the dataset", lambda: stills.dataset_picture(dataset, run.cache)
        )
    if dataset is not None and grids is not None and detector is not None and axes is not None:
        t, e, _ = start_of([run], axes)
        point = axes.points(run.name)[t, e, 0]
        if grids.possible([point]):
            context["detector"] = detector.title.removeprefix("FD-")
            context["neighbours"] = _drawn(
                run, "No nearest images", lambda: stills.neighbours_picture(grids, point, dataset, detector)
            )
    context["notes"] = run.notes
    return context


def _drawn(run: ReportedRun, failure: str, draw: Callable[[], Drawn]) -> Drawn | None:
    try:
        return draw()
    except (ValueError, OSError, RuntimeError) as error:
        run.notes.append(f"{failure}: {first_line(error)}")
        return None


# ----------------------------------------------------------------------------------------------------------- sliders


def explorer_json(runs: Sequence[ReportedRun], axes: Axes, commands: Commands) -> dict[str, Any] | None:
    """Everything that the sliders show, as JSON; None if no grid can be drawn. Runs whose grids fail get a note."""
    runs = [run for run in runs if run.grids is not None]
    shown = [found for run in runs if (found := _run_json(run, axes, commands)) is not None]
    if not shown:
        return None
    metric, comparable = _comparable(runs)
    start = start_of(comparable, axes)
    scores = [row for run in comparable for row in _score_rows(run, axes)]
    labels = [_length(length) for length in axes.lengths]
    first, *others = axes.times.values()
    times = [f"{time:,} images" for time in first]
    if any(other != first for other in others):  # each grid says its own
        times = [f"{i + 1} of {axes.time_count}" for i in range(axes.time_count)]
    return {
        "lengths": labels,
        "times": times,
        "guidances": [f"{weight:g}" for weight in axes.guidances],
        "start": start,
        "metric": metric,
        "curve": charts.curve_over_slider(scores, labels, start) if scores else None,
        "runs": shown,
    }


def _comparable(runs: Sequence[ReportedRun]) -> tuple[str, list[ReportedRun]]:
    """Metric of the first run with scores, and the runs with scores by it; the others get a note."""
    titles = {run.name: run.sweep.title for run in runs if run.sweep is not None}
    metric = next(iter(titles.values()), "Distance")
    for run in runs:
        if titles.get(run.name, metric) != metric:
            run.notes.append(f"No scores over the slider: they are {titles[run.name]}, and others here {metric}.")
    return metric, [run for run in runs if titles.get(run.name) == metric]


def start_of(runs: Sequence[ReportedRun], axes: Axes) -> tuple[int, int, int]:
    """Positions that the page opens at: the best known score, else the middle EMA length at the last time."""
    known = {
        position: score
        for run in runs
        for position, point in axes.points(run.name).items()
        if point.sigma_rel != RAW and (score := best_by_setting(run.sweep).get(point)) is not None
    }
    if known:
        return min(known, key=known.__getitem__)
    return axes.time_count - 1, len(axes.lengths) // 2, 0


def _run_json(run: ReportedRun, axes: Axes, commands: Commands) -> dict[str, Any] | None:
    grids = run.grids
    if grids is None:
        return None
    points = axes.points(run.name)
    possible = grids.possible(list(dict.fromkeys(points.values())))
    try:
        pictures = grids.draw(possible)
    except (ValueError, OSError, RuntimeError) as error:
        run.notes.append(f"No grids of samples: {first_line(error)}")
        return None
    if not pictures:
        run.notes.append("No grids of samples: the run has too few snapshots.")
        return None
    known = best_by_setting(run.sweep)
    settings = {
        ",".join(map(str, position)): {
            "src": source(pictures[point]),
            "commands": "\n".join(commands(run, point)),
            **_words(run, point, known.get(point), grids),
        }
        for position, point in points.items()
        if point in pictures
    }
    any_picture = next(iter(pictures.values()))
    width, height = any_picture.width, any_picture.height
    shown = max(width, GRID_WIDTH // width * width) if width < GRID_WIDTH else GRID_WIDTH
    return {"name": run.name, "settings": settings, "width": width, "height": height, "shown": shown}


def _words(run: ReportedRun, point: Point, score: float | None, grids: Grids) -> dict[str, str]:
    """Caption and alternative text of a grid."""
    setting = f"{_length(point.sigma_rel)} at {point.images_seen:,} images"
    setting = setting if point.sigma_rel == RAW else f"EMA length {setting}"
    if point.guidance != 1 or grids.guide is not None:
        setting += f", guidance {point.guidance:g}"
    caption = f"{run.name}: {setting}"
    if score is not None and run.sweep is not None:
        caption += f"; {run.sweep.title} {score:.4g}"
    error = (
        0.0 if point.sigma_rel == RAW else grids.averages.errors(point.images_seen, [point.sigma_rel])[point.sigma_rel]
    )
    if error > LARGE_ERROR:
        caption += f" (roughly: too few snapshots, the profile is {100 * error:.0f} % off)"
    return {"caption": caption, "alt": f"{grids.sampling.count} samples of {run.name}, {setting}"}


def _score_rows(run: ReportedRun, axes: Axes) -> list[charts.Row]:
    known = best_by_setting(run.sweep)
    return [
        {"position": e, "y": float(f"{known[point]:.5g}"), "run": run.name, "time": t, "guidance": g}
        for (t, e, g), point in axes.points(run.name).items()
        if point in known
    ]


def _length(sigma_rel: float) -> str:
    return "raw" if sigma_rel == RAW else f"{sigma_rel:g}"
