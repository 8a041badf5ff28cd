"""Tables of `edm2 reconstruct`: the error of each EMA length, and the snapshots that a run should store."""

from collections.abc import Sequence
from pathlib import Path

import click
import torch

from edm2.io.snapshots import AnySnapshot
from edm2.post_hoc_ema import missing_snapshots
from edm2.post_hoc_ema.foreign.recognition import ForeignFolder
from edm2.post_hoc_ema.planning import (
    MOST_SNAPSHOTS,
    STORED,
    evenly_spaced_error,
    plan_storage,
    rounding_error,
    storage_dtype,
)
from edm2.post_hoc_ema.reconstruction import Reconstruction
from edm2.training.config import DTYPES

LARGE_ERROR = 0.05
"""Profile error above which an EMA length is marked."""


def reconstructed_name(images_seen: int, sigma_rel: float) -> str:
    """File name of reconstructed weights; names sort by time, then EMA length."""
    return f"ema-{images_seen:012d}-{sigma_rel:.4f}.safetensors"


def warn_of_missing(snapshots: Sequence[AnySnapshot], consequence: str) -> None:
    """Print a warning if snapshots are missing between others of their run."""
    thinned = any((snapshot.metadata.get("training") or {}).get("keep_snapshots") for snapshot in snapshots)
    if missing := missing_snapshots(snapshots, regular=not thinned):
        (t, s), more = missing[0], f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        click.echo(f"Warning: no snapshot of {t} images at length {s:g}{more}; {consequence}.", err=True)


def print_recognized(found: ForeignFolder, one_by_one: bool) -> None:
    """Print what the files of another program are taken for, each if asked for, and what is left aside."""
    click.echo(f"Recognized: {found.kind}; {len(found.snapshots)} files")
    for snapshot in found.snapshots if one_by_one else []:
        click.echo(f"  {snapshot.path.name}: {snapshot.profile}")
    if found.left_aside:
        click.echo(f"Left aside: {', '.join(found.left_aside)}")


def print_errors(reconstruction: Reconstruction, sigma_rels: Sequence[float], paths: Sequence[Path]) -> None:
    """Print the profile's error of each EMA length, the one to expect in the weights, the noise gain, and the file."""
    forecast, weights = reconstruction.forecast()
    click.echo(f"From {len(reconstruction.inputs)} snapshots, at {reconstruction.newest.images_seen:,} images:")
    click.echo(f"{'length':>8} {'profile':>8} {'weights':>9} {'noise':>6}  file")
    rows = zip(sigma_rels, forecast.profile_error, weights, forecast.noise_gain, paths, strict=True)
    for sigma_rel, error, weight_error, gain, path in rows:
        warning = "  (more than 5 %: too few snapshots for this length)" if error > LARGE_ERROR else ""
        click.echo(f"{sigma_rel:8.4f} {100 * error:7.2f}% {100 * weight_error:8.3f}% {gain:6.2f}  {path}{warning}")


def print_storage_plan(sigma_rels: Sequence[float], interval: int, duration: int, parameters: int) -> None:
    """Print the errors with snapshots at this interval, and how many snapshots errors of 5 % and 1 % need.

    Of profiles alone: coefficients that allow for the rounding of files need the files.
    """
    count = duration // interval
    stored = " and ".join(f"{s:g}" for s in STORED)
    click.echo(f"{count} snapshots of each of the lengths {stored}, one per {interval:,} of {duration:,} images:")
    click.echo(f"{'length':>8} {'profile':>8} {'noise':>7}  {'rounding':<8} {'size':>9}")
    for sigma_rel in sigma_rels:
        forecast = evenly_spaced_error(count, sigma_rel)
        error, gain = forecast.profile_error.item(), forecast.noise_gain.item()
        dtype = storage_dtype(gain)
        size = count * len(STORED) * parameters * dtype.itemsize
        mark = "  (more than 5 %)" if error > LARGE_ERROR else ""
        click.echo(
            f"{sigma_rel:8.4f} {100 * error:7.2f}% {gain:7.2f}  {100 * rounding_error(dtype, gain):5.2f} %  "
            f"{_size(size):>9} in {_name(dtype)}{mark}"
        )
    for error in (0.05, 0.01):
        click.echo(f"For an error of {100 * error:.0f} %:")
        for sigma_rel in sigma_rels:
            plan = plan_storage(sigma_rel, error)
            if plan.snapshots is None:
                click.echo(f"{sigma_rel:8.4f} {MOST_SNAPSHOTS} snapshots of each length are not enough")
                continue
            click.echo(
                f"{sigma_rel:8.4f} {plan.snapshots:5} of each length, one per {duration // plan.snapshots:,} images,"
                f" {_name(plan.dtype)}: {_size(plan.nbytes(parameters) or 0)}"
            )


def _name(dtype: torch.dtype) -> str:
    """Name of a dtype in options: "fp16"."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.1f} MB"
