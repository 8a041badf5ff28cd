"""Noise levels as tasks that help or hinder each other: `python -m edm2.tools.bench.studies.noise_bins RUN`.

Min-SNR (arXiv 2303.09556, Section 3) fine-tunes a network on one bin of noise levels at a time, and shows how the loss
in all bins changes: it falls in the bin itself and its neighbours, and rises in distant ones. Here the bins are equally
probable in training, every bin is fine-tuned on the same images with a small, constant learning rate, and the last row,
fine-tuned on all bins, tells what more training alone does. The fine-tuned weights are averaged, so that the noise of
single steps hides nothing. Loss: lambda(sigma) (D - y)² with EDM's weight, on held-out images if the run has any.
"""

import copy
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from edm2.networks import Precond, force_weight_normalization_
from edm2.post_hoc_ema import PowerFunctionEMA
from edm2.sweep.averages import Averages
from edm2.tools.bench.studies.common import write_csv
from edm2.tools.figures.style import save_figure
from edm2.tools.options.parsing import FOLDER, NUMBER
from edm2.training import EDM, Dataset, TrainingConfig, open_dataset, read_run_config
from edm2.training.data.batches import BatchStream
from edm2.training.diagnostics.holdout import evenly_spaced, loss_at_levels
from edm2.training.loss.noise import levels
from edm2.training.loss.objective import DenoisingLoss
from edm2.training.randomness import PositionRandom, Stream
from edm2.training.run.logging import read_stats

LEVELS_PER_BIN = 4
"""Noise levels in each bin at which the loss is measured."""

IMAGES = 500
"""Most images on which the loss is measured."""

SIGMA_REL = 0.2
"""EMA length over the fine-tuning."""

ALL = -1
"""Number of the bin that is all of them."""


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--bins", default=8, show_default=True, type=click.IntRange(2), help="Of noise levels.")
@click.option("--steps", default=300, show_default=True, type=click.IntRange(1), help="Of each fine-tuning.")
@click.option("--lr", type=NUMBER, help="Constant; default: a tenth of the run's last.")
@click.option("--std", "sigma_rel", default=0.05, show_default=True, help="EMA length to start from.")
@click.option("--out", type=FOLDER, help="Folder for noise-bins.csv and noise-bins.png.  [default: RUN]")
def main(run: Path, bins: int, steps: int, lr: float | None, sigma_rel: float, out: Path | None) -> None:
    """Fine-tune a finished RUN on one bin of noise levels at a time; print, write and draw how all losses change."""
    averages, config, out = Averages(run), read_run_config(run), out or run
    [start] = averages.networks(averages.last, [sigma_rel])
    lr = read_stats(run / "stats.jsonl")[-1]["lr"] / 10 if lr is None else lr
    tuning = FineTuning(config, open_dataset(config.data), bins)
    changes = tuning.changes(start, steps, lr)
    columns = [f"{sigma:.3g}" for sigma in levels(tuning.objective.distribution, bins).tolist()]
    rows = list(zip([*columns, "all"], changes.tolist(), strict=True))
    click.echo("Change of the loss in % around each noise level (columns), fine-tuned around each (rows):")
    click.echo(f"{'':>9}" + "".join(f"{column:>9}" for column in columns))
    for name, row in rows:
        click.echo(f"{name:>9}" + "".join(f"{100 * change:+9.2f}" for change in row))
    write_csv(out / "noise-bins.csv", [["fine_tuned_at", *columns], *([name, *row] for name, row in rows)])
    save_figure(draw(columns, changes), out / "noise-bins.png")
    click.echo(f"\n{steps} steps of {config.batch_size} images each, learning rate {lr:.3g}; {out / 'noise-bins.png'}")


class FineTuning:
    """Fine-tuning of networks on one bin of noise levels, with a run's images and draws.

    Args:
        config: Configuration of the run.
        dataset: Its dataset.
        bins: Number of bins.
    """

    def __init__(self, config: TrainingConfig, dataset: Dataset, bins: int) -> None:
        self.config = config
        self.bins = bins
        self.objective = DenoisingLoss(config.objective().distribution, config.network.sigma_data, EDM())
        self.random = PositionRandom(config.seed, config.random_block, torch.device(config.device))
        self.stream = BatchStream(config, dataset, self.random)
        images = self.stream.holdout_set or self.stream.train_set
        self.measured_on = self.stream.all_of(evenly_spaced(images, IMAGES))

    def changes(self, start: Precond, steps: int, lr: float) -> np.ndarray:
        """Relative change of the loss in bin j (columns) of `start` fine-tuned on bin i (rows; the last: on all)."""
        before = self.losses(start.to(self.config.device))
        rows = tqdm([*range(self.bins), ALL], desc="fine-tuning", leave=False, disable=None)
        return np.array([self.losses(self.fine_tuned(start, row, steps, lr)) / before - 1 for row in rows])

    def fine_tuned(self, start: Precond, bin_number: int, steps: int, lr: float) -> Precond:
        """Train a copy of the network on one bin only; returns it with the average of its weights meanwhile."""
        net = copy.deepcopy(start).train().requires_grad_(True)
        net.logvar_linear.requires_grad_(False)  # the loss is without learned uncertainty
        optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=self.config.betas)
        ema = PowerFunctionEMA(net, [SIGMA_REL])
        torch.manual_seed(0)  # of dropout
        end = position = self.config.duration  # draws are those after the run's end, whatever the bin
        for microbatches in islice(self.stream.steps(end), steps):
            force_weight_normalization_(net)
            optimizer.zero_grad()
            for images, labels, *_ in microbatches:
                self.loss(net, images, labels, bin_number, position).backward()
                position += len(images)
            optimizer.step()
            ema.update(position - end)
        net.load_state_dict(ema.average(SIGMA_REL))
        return net.eval().requires_grad_(False)

    def loss(self, net: Precond, images: Tensor, labels: Tensor | None, bin_number: int, position: int) -> Tensor:
        """Sum over pixels and images, over the images of a step: what a micro-batch adds to the step's mean."""
        stop = position + len(images)
        uniform = self.random.uniform(Stream.SIGMA, position, stop).double()
        quantile = uniform if bin_number == ALL else (bin_number + uniform) / self.bins
        sigma = self.objective.distribution.sigma(torch.special.ndtri(quantile.clamp(1e-9, 1 - 1e-9)).float())
        noise = self.random.normal(Stream.NOISE, position, stop, tuple(images.shape[1:]))
        return self.objective(net, images, labels, sigma=sigma, noise=noise).sum() / self.config.batch_size

    def losses(self, net: Precond) -> np.ndarray:
        """Mean loss in each bin."""
        sigmas = levels(self.objective.distribution, self.bins * LEVELS_PER_BIN).tolist()
        found = loss_at_levels(net, self.measured_on, sigmas, self.config.images_per_forward)
        return np.reshape(found.losses, (self.bins, LEVELS_PER_BIN)).mean(axis=1)


def draw(names: Sequence[str], changes: np.ndarray) -> Figure:
    """Draw a heat map: blue where the loss falls, red where it rises."""
    percent = 100 * changes
    limit = max(float(np.abs(percent).max()), 1e-9)
    figure, axes = plt.subplots(figsize=(1.6 + 0.75 * len(names), 1.4 + 0.6 * len(names)), layout="constrained")
    shown = axes.imshow(percent, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        color = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize="small", color=color)
    axes.axhline(len(names) - 0.5, color="white", linewidth=4)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names) + 1), [*names, "all"])
    axes.set_xlabel("noise level σ at which the loss is measured")
    axes.set_ylabel("noise level σ of the fine-tuning")
    axes.set_title("Noise levels help and hinder each other")
    figure.colorbar(shown, ax=axes, label="change of the loss (%)")
    return figure


if __name__ == "__main__":
    main()
