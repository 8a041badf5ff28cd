"""The tables of `edm2 sweep`: sweep.csv, and the table on the screen."""

import csv
from pathlib import Path

import click
from tqdm import tqdm

from edm2.post_hoc_ema import atomic_output
from edm2.sweep.averages import RAW
from edm2.sweep.evaluator import Score
from edm2.sweep.sweep import Point, ScoredPoint, Sweep

COLUMNS = (
    "images_seen", "sigma_rel", "guidance", "guide_sigma_rel", "frechet_distance", "deviation", "accuracy", "distances",
    "metric", "samples",
)  # fmt: skip


def write_sweep(path: Path, sweep: Sweep) -> None:
    """Write sweep.csv, one row per point.

    `distances` are those of all sets of seeds, of which `frechet_distance` is the lowest, each of as many `samples`.
    """
    with atomic_output(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([*_row(result), sweep.title, sweep.samples] for result in _in_order(sweep))


def table_of(folder: Path, steps: int) -> Path:
    """Path of the table of the last sweep in a folder; where one was over several numbers of steps, that of these."""
    several = folder / f"sweep-{steps}.csv"
    return several if several.is_file() else folder / "sweep.csv"


def read_sweep(path: Path) -> Sweep:
    """Read the points of a sweep.csv, and by what they were scored, which earlier versions did not say."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        results = [_result(row) for row in rows]
        if not rows or not rows[0].get("samples"):
            return Sweep(results)
        return Sweep(results, title=rows[0]["metric"], samples=int(rows[0]["samples"]))
    except FileNotFoundError:
        folder = path.parent
        what = f"holds no sweep; make one with edm2 sweep {folder}" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: {what}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is no table of a sweep ({error}); make it again with edm2 sweep") from None


def print_point(result: ScoredPoint) -> None:
    """Print a point as soon as it is scored; the table comes at the end."""
    point = result.point
    guidance = "" if point.guidance == 1 else f", guidance {point.guidance:g}"
    line = f"  {point.images_seen:,} images, EMA length {_sigma_rel(result)}{guidance}: {result.score.distance:.4f}"
    tqdm.write(line)


def print_sweep(sweep: Sweep) -> None:
    """Print the table with the best point marked, and the distance of real images."""
    guided = any(result.point.guidance != 1 for result in sweep.results)
    times = len({result.point.images_seen for result in sweep.results}) > 1
    guide_chosen = any(result.point.guide_sigma_rel is not None for result in sweep.results)
    shown = {"images": times, "EMA length": True, "guidance": guided, "guide EMA": guide_chosen}
    names = [name for name, is_shown in shown.items() if is_shown]
    click.echo("".join(f"{name:>12}" for name in names) + f" {sweep.title:>18} {'+-':>8} {'accuracy':>9}")
    for result in _in_order(sweep):
        point, score = result.point, result.score
        cells = {
            "images": f"{point.images_seen:,}",
            "EMA length": _sigma_rel(result),
            "guidance": f"{point.guidance:g}",
            "guide EMA": "" if point.guide_sigma_rel is None else f"{point.guide_sigma_rel:.4f}",
        }
        line = "".join(f"{cells[name]:>12}" for name in names) + f" {score.distance:18.4f}"
        line += f" {_number(score.deviation, '8.4f'):>8} {_number(score.accuracy, '9.3f'):>9}"
        click.echo((line + ("  <- best" if result is sweep.best else "")).rstrip())
    if sweep.real_data_fd is not None:
        click.echo(f"{'real images':>{12 * len(names)}} {sweep.real_data_fd:18.4f}")


def _in_order(sweep: Sweep) -> list[ScoredPoint]:
    """Sort by time, guidance, guide and EMA length; the raw weights come last."""
    raw = [] if sweep.raw is None else [sweep.raw]
    return [*sorted(sweep.averages, key=_sort_key), *raw]


def _sort_key(result: ScoredPoint) -> tuple[float, ...]:
    point = result.point
    return point.images_seen, point.guidance, point.guide_sigma_rel or 0, point.sigma_rel


def _row(result: ScoredPoint) -> list[object]:
    point, score = result.point, result.score
    return [
        point.images_seen,
        _sigma_rel(result),
        f"{point.guidance:g}",
        "" if point.guide_sigma_rel is None else f"{point.guide_sigma_rel:.4f}",
        score.distance,
        _number(score.deviation, ".6g"),
        _number(score.accuracy, ".4f"),
        " ".join(f"{s.distance:.6g}" for s in result.scores),
    ]


def _result(row: dict[str, str]) -> ScoredPoint:
    point = Point(
        int(row["images_seen"]),
        RAW if row["sigma_rel"] == "raw" else float(row["sigma_rel"]),
        float(row["guidance"]),
        float(row["guide_sigma_rel"]) if row["guide_sigma_rel"] else None,
    )
    deviation, accuracy = (float(row[name]) if row[name] else None for name in ("deviation", "accuracy"))
    return ScoredPoint(point, (Score(float(row["frechet_distance"]), deviation, accuracy),))


def _sigma_rel(result: ScoredPoint) -> str:
    return f"{result.point.sigma_rel:.4f}" if result.point.sigma_rel else "raw"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
