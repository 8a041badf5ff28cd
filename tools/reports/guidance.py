"""The table of `edm2 autoguide`: guidance.csv, and the table on the screen."""

import csv
from pathlib import Path
from typing import Any

import click

from edm2.post_hoc_ema import atomic_output
from edm2.sampling.guidance import EVERYWHERE
from edm2.sweep.autoguidance import Comparison, Row
from edm2.sweep.guides import DropoutGuide, GuideRun


def columns_of(row: Row) -> dict[str, Any]:
    """Settings and scores of a row, by the names of columns."""
    candidate, point = row.candidate, row.candidate.point
    guide = candidate.guide
    low, high = candidate.interval
    everywhere = candidate.interval == EVERYWHERE
    return {
        "method": row.name,
        "distance": row.distance,
        "deviation": "" if row.deviation is None else row.deviation,
        "guidance": f"{point.guidance:g}",
        "sigma_rel": f"{point.sigma_rel:g}",
        "guide_sigma_rel": "" if not isinstance(guide, GuideRun) else f"{point.used_guide_sigma_rel:g}",
        "guide_images": "" if not isinstance(guide, GuideRun) else guide.at,
        "guide_dropout": "" if not isinstance(guide, DropoutGuide) else guide.rate,
        "interval": "" if everywhere else f"{low:.3g},{high:.3g}",
        "evaluations": row.evaluations[0],
        "guide_evaluations": row.evaluations[1],
        "candidates": row.tried,
        "distances": " ".join(f"{score.distance:.6g}" for score in row.scores),
    }


def write_guidance(path: Path, comparison: Comparison) -> None:
    """Write guidance.csv, one row per method."""
    rows = [columns_of(row) for row in comparison.rows]
    with atomic_output(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def print_row(row: Row, title: str) -> None:
    """Print a row as soon as it is known."""
    values = columns_of(row)
    said = f"weight {values['guidance']}, " if row.candidate.guide else ""
    said += f"EMA {values['sigma_rel']}"
    said += f", guide's EMA {values['guide_sigma_rel']}" if values["guide_sigma_rel"] else ""
    said += f" at {values['guide_images']:,} images" if values["guide_images"] else ""
    said += f", dropout {values['guide_dropout']:g}" if values["guide_dropout"] else ""
    said += f", interval {values['interval']}" if values["interval"] else ""
    evaluations = "+".join(str(count) for count in row.evaluations if count)
    click.echo(f"{row.name:<40} {title} {_shown_distance(row)}  {evaluations} evaluations  ({said})")


def print_verdict(comparison: Comparison, real_data_fd: float | None) -> None:
    """Say which method is the best, and which ones these seeds cannot tell from it."""
    if real_data_fd is not None:
        click.echo(f"{'as many real images':<40} {real_data_fd:.5g}")
    best, rivals = comparison.best, ", ".join(row.name for row in comparison.rivals)
    if comparison.fresh is None:
        click.echo("Guidance does not pay here: no method is better than sampling without it.")
        return
    by_fresh = " against ".join(_shown_distance(row) for row in reversed(comparison.fresh))
    if comparison.winner is None:
        click.echo(f"No winner: fresh samples do not tell {best.name} from no guidance ({by_fresh}).")
        click.echo("Give more --samples or --repeats, or a detector that sees more.")
    else:
        click.echo(f"Best: {best.name}" + (f"; not told apart from it: {rivals}." if rivals else "."))
        click.echo(f"By fresh samples: {by_fresh} without guidance.")


def _shown_distance(row: Row) -> str:
    return f"{row.distance:.5g}" + ("" if row.deviation is None else f" +- {row.deviation:.2g}")
