"""`edm2 reconstruct`: weights of any EMA length from a run's snapshots."""

from collections.abc import Sequence
from pathlib import Path

import click

from edm2.tools.options.parsing import BYTES, FOLDER, GROUP, IMAGES, PARAMETER_COUNT, PRECISION, SIGMA_RELS

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
  # How large would the errors be? Nothing is written
  edm2 reconstruct runs/mine --std 0.01,0.02,...,0.25 --plan
\b
  # Before training: how many snapshots to keep, and how much disk they take
  edm2 reconstruct --plan --std 0.03,0.10,0.20 --interval 8Mi --duration 2Gi --parameters 280M
\b
  # Another length for the embeddings' gains; many lengths for all tensors of the embeddings, 0.13 for the rest
  edm2 reconstruct runs/mine --std 0.13 --std-for "*.emb_gain=0.05" --out emb/
  edm2 reconstruct runs/mine --std 0.05,0.07,...,0.21 --std-for "!*.emb_*=0.13" --out emb/
"""


@click.command(epilog=EPILOG)
@click.argument("run", type=FOLDER, required=False)
@click.option(
    "--std", "--sigma-rel", "sigma_rels", type=SIGMA_RELS, required=True, help="EMA lengths: 0.05,0.1,...,0.25"
)
@click.option("--at", type=IMAGES, help="Time in images seen, one with snapshots; default: the last.")
@click.option("--out", type=FOLDER, help="Folder to write to.  [default: RUN/reconstructed]")
@click.option("--std-for", "groups", type=GROUP, multiple=True,
              help="Another EMA length for the tensors whose names match a pattern (with ! before it: do not match); "
              "repeatable, the first match counts.")  # fmt: skip
@click.option("--method", type=click.Choice(["tails", "density"]), default="tails", show_default=True,
              help="Coefficients: of the smallest expected error, or the paper's Algorithm 3.")  # fmt: skip
@click.option("--dtype", type=PRECISION, default="fp32", show_default=True, help="Precision of the results.")
@click.option("--memory", type=BYTES, default="4G", show_default=True, help="Memory to use at most.")
@click.option("--threads", type=click.IntRange(1), help="Threads to use; default: one per core, at most 8.")
@click.option("--plan", is_flag=True, help="Print the errors only; without RUN, those of a run to come.")
@click.option("--interval", type=IMAGES, default="8Mi", show_default=True, help="--plan: images between snapshots.")
@click.option("--duration", type=IMAGES, default="2Gi", show_default=True, help="--plan: images of the run.")
@click.option(
    "--parameters", type=PARAMETER_COUNT, default="100M", show_default=True, help="--plan: size of the network."
)
def reconstruct(
    run: Path | None,
    sigma_rels: list[float],
    at: int | None,
    out: Path | None,
    groups: Sequence[tuple[str, float]],
    method: str,
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
    weights that an average of each given length would have had. A length is the standard deviation of the average's
    profile over time, as a fraction of the training so far: more than 0, less than 0.2887.

    The profile column says how far the reconstructed average is from the exact one, as a share of how far the last
    weights are from it; more snapshots, or lengths nearer to the stored ones, lower it. The weights column is the error
    to expect in the weights, rounding of the files included; noise, the factor by which that grows.
    """
    from edm2.tools.reports.reconstruction import print_errors, print_storage_plan, reconstructed_name, warn_of_missing

    if run is None:
        if not plan:
            raise click.UsageError("Missing argument 'RUN'.")
        if interval > duration:
            raise click.BadParameter(f"{interval} is longer than the run of {duration}", param_hint="'--interval'")
        print_storage_plan(sigma_rels, interval, duration, parameters)
        return
    from edm2.io.model import reconstructed_metadata
    from edm2.io.snapshots import open_run, refuse_different_runs
    from edm2.post_hoc_ema import reconstruct_files, select_snapshots
    from edm2.post_hoc_ema.reconstruction import THREADS, Reconstruction
    from edm2.tools.progress import progress_bar
    from edm2.training.config import DTYPES

    snapshots = open_run(run)
    try:
        used = select_snapshots(snapshots, at)
        warn_of_missing(used, "the errors below allow for it")
        refuse_different_runs(used)
        paths = [(out or run / "reconstructed") / reconstructed_name(used[0].images_seen, s) for s in sigma_rels]
        threads = threads or THREADS
        # Refuse what cannot be combined, and too little memory, before the table is printed.
        reconstruction = Reconstruction(used, sigma_rels, groups=dict(groups), method=method)
        if not plan:
            reconstruction.resources(reconstruction.layouts(), memory, threads)
        print_errors(reconstruction, sigma_rels, paths)
        if plan:
            return
        lengths = {"sigma_rel_of": dict(groups)} if groups else {}
        metadata = [reconstructed_metadata(used[::-1], used[0].images_seen, s, method) | lengths for s in sigma_rels]
        with progress_bar(unit="weights") as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            reconstruct_files(
                used, sigma_rels, paths, metadata, groups=dict(groups), method=method, dtype=DTYPES[dtype],
                memory=memory, threads=threads, progress=show,
            )  # fmt: skip
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(run) in text else f"{run}: {text}") from None
