"""`edm2 reconstruct`: weights of any EMA length from a run's snapshots."""

from pathlib import Path

import click

from edm2.tools.parsing import FOLDER, IMAGES, SIGMA_RELS

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
"""


def reconstructed_name(images_seen: int, sigma_rel: float) -> str:
    """File name of reconstructed weights; names sort by time, then length."""
    return f"ema-{images_seen:012d}-{sigma_rel:.4f}.safetensors"


@click.command(epilog=EPILOG)
@click.argument("run", type=FOLDER)
@click.option(
    "--std", "--sigma-rel", "sigma_rels", type=SIGMA_RELS, required=True, help="EMA lengths: 0.05,0.1,...,0.25"
)
@click.option("--at", type=IMAGES, help="Images seen, a time with snapshots; default: the last.")
@click.option("--out", type=FOLDER, help="Folder.  [default: RUN/reconstructed]")
def reconstruct(run: Path, sigma_rels: list[float], at: int | None, out: Path | None) -> None:
    """Choose the EMA length after training.

    Combines the snapshots in RUN (a run folder, or a folder of snapshots or of published network pickles) to the
    weights that an average of each given length would have had. A length is the profile's standard deviation as a
    share of the training so far, between 0 and 0.2886. The error column says how far the reconstructed profile is from
    the exact one; more snapshots, or lengths nearer to the stored ones, lower it.
    """
    from edm2.model import reconstructed_metadata
    from edm2.post_hoc_ema import reconstruct as reconstruct_states
    from edm2.post_hoc_ema import reconstruction_error, write_snapshot
    from edm2.snapshots import open_run

    snapshots = open_run(run)
    try:
        states = reconstruct_states(snapshots, sigma_rels, at)
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from None
    at = at or snapshots[-1].images_seen
    used = [s for s in snapshots if 0 < s.images_seen <= at]
    forecast = reconstruction_error([s.images_seen for s in used], [s.sigma_rel for s in used], at, sigma_rels)
    out = out or run / "reconstructed"
    click.echo(f"From {len(used)} snapshots, at {at:,} images:")
    click.echo(f"{'length':>8} {'error':>8}  file")
    for sigma_rel, state, error in zip(sigma_rels, states, forecast.profile_error, strict=True):
        path = out / reconstructed_name(at, sigma_rel)
        write_snapshot(path, state, reconstructed_metadata(snapshots, at, sigma_rel))
        warning = "  (more than 5 %: too few snapshots for this length)" if error > 0.05 else ""
        click.echo(f"{sigma_rel:8.4f} {100 * error:7.2f}%  {path}{warning}")
