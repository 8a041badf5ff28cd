"""Evenness of the gradient over noise levels: `python -m edm2.tools.bench.studies.gradients RUN...`.

The paper's uncertainty-based weighting (arXiv 2312.02696v2, Section 2.2 and Eq. 21) is to equalize the contribution of
all noise levels to the gradient throughout training. This measures the norm of the gradient of each finished run's own
loss in eight bins of noise levels that are equally probable in its training, as `edm2 train --diagnostics` does, but on
as many images as are asked for: the norm of a mean over few images is mostly the noise of these few.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import torch

from edm2.io.model import load
from edm2.tools.options.parsing import FOLDER
from edm2.training import RunFolder, open_dataset, read_run_config
from edm2.training.data.batches import BatchStream
from edm2.training.diagnostics.batches import by_bin, spaced_images
from edm2.training.diagnostics.noise_levels import measure_noise_levels
from edm2.training.randomness import PositionRandom


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--images", default=512, show_default=True, help="In each bin, of the training set.")
def main(runs: Sequence[Path], images: int) -> None:
    """Print the norm of the gradient at each noise level of finished RUNs."""
    for run in runs:
        curve = gradients(run, images)
        norms = "".join(f"{norm:>9.3g}" for norm in curve.values())
        click.echo(f"{run.name:<24}{norms}   largest / smallest {max(curve.values()) / min(curve.values()):.3g}")
        click.echo(f"{'  at σ =':<24}" + "".join(f"{float(sigma):>9.3g}" for sigma in curve))


def gradients(run: Path, images: int) -> Mapping[str, float]:
    """Norm of the gradient by the median noise level of a bin, for the weights that training ended with.

    Raises:
        OSError, ValueError: this is no finished run.
    """
    config = read_run_config(run)
    net = load(RunFolder(run).raw_weights).to(config.device).requires_grad_(True)
    objective = config.objective()
    random = PositionRandom(config.seed, config.random_block, torch.device(config.device))
    shown = spaced_images(BatchStream(config, open_dataset(config.data), random), images)
    bins = by_bin(shown, objective.distribution, 8)
    return measure_noise_levels(net, objective, bins, config.images_per_forward)["noise_levels"]["gradient_norm"]


if __name__ == "__main__":
    main()
