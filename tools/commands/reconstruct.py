"""`edm2 reconstruct`: weights of any EMA length from a run's snapshots."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from edm2.tools.options.parsing import FOLDER, IMAGES, PRECISION, SIGMA_RELS

if TYPE_CHECKING:
    from edm2.io.snapshots import AnySnapshot

EPILOG = """\b
Examples:
  # Three lengths at the end of the run
  edm2 reconstruct runs/mine --std 0.05,0.10,0.15
\b
  # Twenty-five lengths, one million images into it
  edm2 reconstruct runs/mine --std 0.01,0.02,...,0.25 --at 1Mi --out early/
\b
  # From network pickles of the published program (network-snapshot-0008388-0.050.pkl, ...)
  edm2 reconstruct published/ --std 0.135
\b
  # What would it be like? Nothing is written
  edm2 reconstruct runs/mine --std 0.01,0.02,...,0.25 --plan
\b
  # Before training: how many snapshots to keep, and what they cost
  edm2 reconstruct --plan --std 0.03,0.10,0.20 --interval 8Mi --duration 2Gi --parameters 280M
\b
  # A length of their own for the embeddings' gains; many lengths for them alone, all else at 0.13
  edm2 reconstruct runs/mine --std 0.13 --std-for "*.emb_gain=0.05" --out emb/
  edm2 reconstruct runs/mine --std 0.05,0.07,...,0.21 --std-for "!*.emb_*=0.13" --out emb/
"""

WARNING = 0.05
"""Profile error above which a length is marked."""


def reconstructed_name(images_seen: int, sigma_rel: float) -> str:
    """File name of reconstructed weights; names sort by time, then length."""
    return f"ema-{images_seen:012d}-{sigma_rel:.4f}.safetensors"


def parse_bytes(text: str) -> int:
    """Bytes: "512M", "4G" (1024^2, 1024^3), "1000".

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip())
    if not match or not int(match[1]):
        raise ValueError(f"{text!r} is no amount of memory; write 512M or 4G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2]]


def parse_count(text: str) -> int:
    """A number of parameters: "125M", "1.5B" (10^6, 10^9), "722443".

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip())
    count = round(float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[match[2]]) if match else 0
    if not count:
        raise ValueError(f"{text!r} is no number of parameters; write 125M or 1.5B")
    return count


def parse_group(text: str) -> tuple[str, float]:
    """A pattern of names and an EMA length: "*.emb_gain=0.05".

    Raises:
        ValueError: anything else.
    """
    pattern, equals, length = text.rpartition("=")
    if not (pattern and equals):
        raise ValueError(
            f"{text!r} does not say which tensors have which length; write PATTERN=LENGTH: *.emb_gain=0.05"
        )
    from edm2.tools.options.parsing import parse_sigma_rels

    lengths = parse_sigma_rels(length)
    if len(lengths) != 1:
        raise ValueError(f"{text!r}: a pattern has one length")
    return pattern, lengths[0]


class _Value(click.ParamType):
    """What one of the functions above parses."""

    def __init__(self, name, parse):
        self.name = name
        self.parse = parse

    def convert(self, value, param, ctx):
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


BYTES = _Value("bytes", parse_bytes)
COUNT = _Value("count", parse_count)
GROUP = _Value("pattern=length", parse_group)


@click.command(epilog=EPILOG)
@click.argument("run", type=FOLDER, required=False)
@click.option(
    "--std", "--sigma-rel", "sigma_rels", type=SIGMA_RELS, required=True, help="EMA lengths: 0.05,0.1,...,0.25"
)
@click.option("--at", type=IMAGES, help="Images seen, a time with snapshots; default: the last.")
@click.option("--out", type=FOLDER, help="Folder.  [default: RUN/reconstructed]")
@click.option("--std-for", "groups", type=GROUP, multiple=True,
              help="A length of their own for tensors whose names fit a pattern (! before it: do not fit); repeatable, "
              "the first that fits counts.")  # fmt: skip
@click.option("--dtype", type=PRECISION, default="fp32", show_default=True, help="To store the results in.")
@click.option("--memory", type=BYTES, default="4G", show_default=True, help="To use at most, whatever the sizes.")
@click.option("--threads", type=click.IntRange(1), help="To use at most; default: as many as there are cores, up to 8.")
@click.option("--plan", is_flag=True, help="Print the forecast alone; without RUN: for a run that is to come.")
@click.option("--interval", type=IMAGES, default="8Mi", show_default=True, help="Plan: images between snapshots.")
@click.option("--duration", type=IMAGES, default="2Gi", show_default=True, help="Plan: images of the run.")
@click.option("--parameters", type=COUNT, default="100M", show_default=True, help="Plan: size of the network.")
def reconstruct(
    run: Path | None,
    sigma_rels: list[float],
    at: int | None,
    out: Path | None,
    groups: Sequence[tuple[str, float]],
    dtype: str,
    memory: int,
    threads: int | None,
    plan: bool,
    interval: int,
    duration: int,
    parameters: int,
) -> None:
    """Choose the EMA length after training.

    Combines the snapshots in RUN (a run folder, or a folder of snapshots or of published network pickles) to the
    weights that an average of each given length would have had. A length is the profile's standard deviation as a
    share of the training so far, between 0 and 0.2886.

    The error column says how far the reconstructed profile is from the exact one; more snapshots, or lengths nearer to
    the stored ones, lower it. The noise column says by how much rounding of the stored weights grows.
    """
    if run is None:
        if not plan:
            raise click.UsageError("Missing argument 'RUN'.")
        print_storage_plan(sigma_rels, interval, duration, parameters)
        return
    from edm2.io.snapshots import open_run, refuse_different_runs
    from edm2.post_hoc_ema.reconstruction import THREADS, Reconstruction

    snapshots = open_run(run)
    try:
        used = _select(snapshots, at)
        refuse_different_runs(used)
        paths = [(out or run / "reconstructed") / reconstructed_name(used[0].images_seen, s) for s in sigma_rels]
        threads = threads or THREADS
        whole = Reconstruction(
            used, sigma_rels, groups=dict(groups)
        )  # what cannot be combined shows before the forecast
        if not plan:
            whole.resources(whole.layouts(), memory, threads)  # too little memory shows before it as well
        print_forecast(used, sigma_rels, paths)
        if not plan:
            _write(used, sigma_rels, paths, dict(groups), dtype, memory, threads)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(run) in text else f"{run}: {text}") from None


def _select(snapshots: "Sequence[AnySnapshot]", at: int | None) -> "list[AnySnapshot]":
    """The snapshots to use, the latest first."""
    from edm2.post_hoc_ema import select_snapshots

    used = select_snapshots(snapshots, at)
    warn_of_missing(used, "the errors below allow for it")
    return used


def warn_of_missing(snapshots: "Sequence[AnySnapshot]", consequence: str) -> None:
    """A word about snapshots that one would expect among these, and what comes of it."""
    from edm2.post_hoc_ema import missing_snapshots

    thinned = any((snapshot.metadata.get("training") or {}).get("keep_snapshots") for snapshot in snapshots)
    if missing := missing_snapshots(snapshots, regular=not thinned):
        (t, s), more = missing[0], f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        click.echo(f"Warning: no snapshot of {t} images at length {s:g}{more}; {consequence}.", err=True)


def print_forecast(used: "Sequence[AnySnapshot]", sigma_rels: Sequence[float], paths: Sequence[Path]) -> None:
    """One row per length: what to expect of it, and the file."""
    from edm2.post_hoc_ema import reconstruction_error

    at = used[0].images_seen
    forecast = reconstruction_error([s.images_seen for s in used], [s.sigma_rel for s in used], at, sigma_rels)
    click.echo(f"From {len(used)} snapshots, at {at:,} images:")
    click.echo(f"{'length':>8} {'error':>8} {'noise':>6}  file")
    rows = zip(sigma_rels, forecast.profile_error, forecast.noise_gain, paths, strict=True)
    for sigma_rel, error, gain, path in rows:
        warning = "  (more than 5 %: too few snapshots for this length)" if error > WARNING else ""
        click.echo(f"{sigma_rel:8.4f} {100 * error:7.2f}% {gain:6.2f}  {path}{warning}")


def _write(
    used: "Sequence[AnySnapshot]",
    sigma_rels: Sequence[float],
    paths: Sequence[Path],
    groups: dict[str, float],
    dtype: str,
    memory: int,
    threads: int,
) -> None:
    """All files, with a bar."""
    from edm2.io.model import reconstructed_metadata
    from edm2.post_hoc_ema import reconstruct_files
    from edm2.training.config import DTYPES

    at, ordered = used[0].images_seen, used[::-1]
    lengths = {"sigma_rel_of": groups} if groups else {}
    metadata = [reconstructed_metadata(ordered, at, sigma_rel) | lengths for sigma_rel in sigma_rels]
    with tqdm(desc="weights", unit="", unit_scale=True, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        reconstruct_files(
            used,
            sigma_rels,
            paths,
            metadata,
            groups=groups,
            dtype=DTYPES[dtype],
            memory=memory,
            threads=threads,
            progress=show,
        )


def print_storage_plan(sigma_rels: Sequence[float], interval: int, duration: int, parameters: int) -> None:
    """What snapshots at this interval are good for, and how many are needed for errors of 5 % and 1 %."""
    from edm2.post_hoc_ema.planning import STORED, evenly_spaced_error, plan_storage, rounding_error, storage_dtype

    count = duration // interval
    if count < 1:
        raise click.BadParameter(f"{interval} is longer than the run of {duration}", param_hint="'--interval'")
    stored = " and ".join(f"{s:g}" for s in STORED)
    click.echo(f"{count} snapshots of each of the lengths {stored}, one per {interval:,} of {duration:,} images:")
    click.echo(f"{'length':>8} {'error':>8} {'noise':>7}  {'rounding':<8} {'size':>9}")
    for sigma_rel in sigma_rels:
        forecast = evenly_spaced_error(count, sigma_rel)
        error, gain = forecast.profile_error.item(), forecast.noise_gain.item()
        dtype = storage_dtype(gain)
        size = count * len(STORED) * parameters * dtype.itemsize
        mark = "  (more than 5 %)" if error > WARNING else ""
        click.echo(
            f"{sigma_rel:8.4f} {100 * error:7.2f}% {gain:7.2f}  {100 * rounding_error(dtype, gain):5.2f} %  "
            f"{_size(size):>9} in {_name(dtype)}{mark}"
        )
    for error in (0.05, 0.01):
        click.echo(f"For an error of {100 * error:.0f} %:")
        for sigma_rel in sigma_rels:
            plan = plan_storage(sigma_rel, error)
            if plan.snapshots is None:
                click.echo(f"{sigma_rel:8.4f} 1,024 snapshots of each length are not enough")
                continue
            click.echo(
                f"{sigma_rel:8.4f} {plan.snapshots:5} of each length, one per {duration // plan.snapshots:,} images,"
                f" {_name(plan.dtype)}: {_size(plan.nbytes(parameters))}"
            )


def _name(dtype: object) -> str:
    """As options call it."""
    from edm2.training.config import DTYPES

    return next(name for name, known in DTYPES.items() if known == dtype)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.1f} MB"
