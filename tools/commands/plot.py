"""`edm2 plot`: draw the records of runs, one figure per quantity."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edm2.tools.options.parsing import FOLDER

if TYPE_CHECKING:
    from edm2.tools.figures import PlottedRun, Source

NAMES = (
    "error", "loss", "holdout", "lr", "speed", "activations", "weights", "updates", "gradients", "uncertainty",
    "shares",
)  # fmt: skip
"""Names of edm2.tools.figures.FIGURES, here without importing matplotlib."""

EPILOG = """\b
Examples:
  # Everything that a run has recorded, finished or not, as PNG files in runs/digits/plots
  edm2 plot runs/digits
\n\b
  # Two runs in the same figures, under names of your choice
  edm2 plot before=runs/digits after=runs/digits-2 --out comparison
\n\b
  # The paper's figures 3 and 15, of as many configurations as you have trained
  edm2 plot B=runs/b C=runs/c D=runs/d E=runs/e F=runs/f G=runs/g --only activations,weights --out ladder

\b
Figures:
  error         error in training and on held-out images: 1 for a network that knows nothing
  loss          training loss
  holdout       loss on held-out and on training images                     --holdout
  lr            learning rate
  speed         images per second
  activations   magnitudes of activations per block resolution              --diagnostics
  weights       magnitudes of weights, averaged and raw                     --diagnostics
  updates       relative update of a step, effective learning rate          --diagnostics
  gradients     norm of the gradient per noise level                        --diagnostics
  uncertainty   loss per noise level, with the learned u(sigma) over it     --diagnostics
  shares        clipped activations, non-finite gradients                   --diagnostics

Those with an option beside them need a run that was trained with it.
"""


def parse_names(ctx: click.Context, parameter: click.Parameter, text: str | None) -> list[str] | None:
    """Parse names of figures, separated by commas."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in NAMES]:
        raise click.BadParameter(f"there is no figure {unknown[0]!r}; there are {', '.join(NAMES)}")
    return list(dict.fromkeys(names))


@click.command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="[NAME=]RUN...")
@click.option("--out", type=FOLDER, help="Folder for the PNG files.  [default: RUN/plots; with several runs: plots]")
@click.option(
    "--only", callback=parse_names, metavar="NAME,...", help="Figures to draw; default: all that are recorded."
)
def plot(runs: tuple[str, ...], out: Path | None, only: list[str] | None) -> None:
    """Draw the records of runs: losses, speed, and the measurements of --diagnostics.

    Several runs are compared in the same figures, one colour each, under their folder names or names of your choice.
    """
    from edm2.tools.figures import FIGURES
    from edm2.tools.figures.runs import folders_by_name, open_runs
    from edm2.tools.figures.style import save_figure

    folders = folders_by_name(runs)
    opened = open_runs(folders)
    folder = out or (next(iter(folders.values())) / "plots" if len(folders) == 1 else Path("plots"))
    left_out: dict[str, list[str]] = {}
    drawn = []
    for name in only or NAMES:
        source, draw = FIGURES[name]
        known = [run for run in opened if source.records(run)]
        if known:
            save_figure(draw(known), folder / f"{name}.png")
            drawn.append(name)
        if len(known) < len(opened):
            left_out.setdefault(_reason(source, opened), []).append(name)
    if not drawn:
        raise click.ClickException("; ".join(f"cannot draw {', '.join(n)}: {why}" for why, n in left_out.items()))
    click.echo(f"{', '.join(drawn)}: in {folder}")
    for why, names in left_out.items():
        click.echo(f"Left out of {', '.join(names)}: {why}", err=True)


def _reason(source: "Source", runs: list["PlottedRun"]) -> str:
    """Names of the runs without records for a figure, and the remedy."""
    lacking = [run.name for run in runs if not source.records(run)]
    return f"{', '.join(lacking)} ({source.remedy})"
