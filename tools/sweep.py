"""`edm2 sweep`: score many EMA lengths of a run, draw the curve, name the best."""

from pathlib import Path

import click

from edm2.tools.parsing import FOLDER, IMAGES, SIGMA_RELS

EPILOG = """\b
Examples:
  # Twelve lengths at the end of a run
  edm2 sweep runs/digits
\b
  # Where was the best length halfway?
  edm2 sweep runs/digits --at 64000 --std 0.01,0.03,...,0.25 --out halfway/
"""


@click.command(epilog=EPILOG)
@click.argument("run", type=FOLDER)
@click.option("--std", "--sigma-rel", "sigma_rels", type=SIGMA_RELS, default="0.02,0.04,...,0.24", show_default=True,
              help="EMA lengths to score.")  # fmt: skip
@click.option("--at", type=IMAGES, help="Images seen, a time with snapshots; default: the last.")
@click.option("--data", help="Real images to compare with; default: those of the run.")
@click.option("--samples", "count", type=click.IntRange(2), default=500, show_default=True, help="Samples per length.")
@click.option("--steps", "num_steps", type=click.IntRange(1), default=32, show_default=True, help="Sampling steps.")
@click.option("--out", type=FOLDER, help="Folder for sweep.csv and sweep.png.  [default: RUN]")
def sweep(
    run: Path, sigma_rels: list[float], at: int | None, data: str | None, count: int, num_steps: int, out: Path | None
) -> None:
    """Score many EMA lengths of RUN and plot the curve.

    Every length is reconstructed, draws the same seeds, and is scored by the Frechet distance of its samples to all
    real images in pixel space, which suits small images (up to 1024 values), and by the share of samples that a
    classifier of the real images recognizes.
    """
    from edm2.sweeping import sweep_run
    from edm2.tools.plots import plot_sweep
    from edm2.tools.run import progress_bar
    from edm2.tools.tables import print_sweep, write_sweep
    from edm2.training import open_dataset, read_run_config

    config = read_run_config(run)
    dataset = open_dataset(data or config.data)
    drawn = (config.network.img_channels, *config.network.size)
    if dataset.shape != drawn:
        raise ValueError(f"{data}: images are {dataset.shape}, but {run} draws {drawn} (channels, height, width)")
    progress = progress_bar("scoring EMA lengths")
    result = sweep_run(run, sigma_rels, dataset, at=at, count=count, num_steps=num_steps, progress=progress)
    out = out or run
    write_sweep(out / "sweep.csv", result)
    plot_sweep(out / "sweep.png", result)
    print_sweep(result)
    click.echo(f"\nThe curve: {out / 'sweep.png'}, the numbers: {out / 'sweep.csv'}. The best length's weights:")
    click.echo(f"  edm2 reconstruct {run} --std {result.best.sigma_rel:g}" + (f" --at {at}" if at else ""))
