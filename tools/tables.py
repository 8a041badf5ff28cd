"""The tables that the commands print and write."""

import csv
from pathlib import Path

import click

from edm2.post_hoc_ema import atomic_output
from edm2.sweeping import Sweep


def _rows(sweep: Sweep) -> list[tuple[str, float, float | None]]:
    """(EMA length, Frechet distance, accuracy) of every length and of the raw weights."""
    rows = [(f"{p.sigma_rel:.4f}", p.score.frechet, p.score.accuracy) for p in sweep.points]
    return rows if sweep.raw is None else [*rows, ("raw", sweep.raw.frechet, sweep.raw.accuracy)]


def write_sweep(path: Path, sweep: Sweep) -> None:
    """sweep.csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sigma_rel", "frechet_distance", "accuracy"])
        writer.writerows(_rows(sweep))


def print_sweep(sweep: Sweep) -> None:
    """The table on the screen, the best length marked, with what perfect samples would score."""
    click.echo(f"{'EMA length':>12} {'Frechet':>9} {'accuracy':>9}")
    for name, frechet, accuracy in _rows(sweep):
        mark = "  <- best" if name == f"{sweep.best.sigma_rel:.4f}" else ""
        click.echo(f"{name:>12} {frechet:9.4f} {'' if accuracy is None else f'{accuracy:9.3f}'}{mark}")
    click.echo(f"{'real images':>12} {sweep.floor:9.4f}")
