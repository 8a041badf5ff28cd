"""Noise levels as tasks that help or hinder each other: `python -m edm2.tools.bench.studies.noise_bins RUN`.

Min-SNR (arXiv 2303.09556, Section 3) fine-tunes a network on one bin of noise levels at a time, and shows how the loss
in all bins changes: it falls in the bin itself and its neighbours, and rises in distant ones. Here the bins are equally
probable in training, every bin is fine-tuned on the same images with a small, constant learning rate, and the last row,
fine-tuned on all bins, tells what more training alone does. The fine-tuned weights are averaged, so that the noise of
single steps hides nothing. Loss: lambda(sigma) (D - y)² with EDM's weight, on held-out images if the run has any.
"""

import copy
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
from edm2.post_hoc_ema import PowerFunctionEMA, atomic_output
from edm2.sweep.averages import Averages
from edm2.tools.figures.style import save_figure
from edm2.tools.options.parsing import FOLDER, NUMBER
from edm2.training import EDM, Dataset, TrainingConfig, open_dataset, read_run_config
from edm2.training.data.batches import Batch, BatchStream
from edm2.training.diagnostics.holdout import evenly_spaced, loss_at_levels
from edm2.training.loss.noise import levels
from edm2.training.loss.objective import DenoisingLoss
from edm2.training.randomness import PositionRandom, Stream
from edm2.training.run.logging import read_stats

PER_BIN = 4
"""Noise levels in each bin at which the loss is measured."""

IMAGES = 500
"""At most so many images tell the loss."""

LENGTH = 0.2
"""sigma_rel of the average over the fine-tuning."""

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
    averages = Averages(run)
    [start] = averages.networks(averages.last, [sigma_rel])
    config = read_run_config(run)
    lr = read_stats(run / "stats.jsonl")[-1]["lr"] / 10 if lr is None else lr
    tuning = FineTuning(config, open_dataset(config.data), start, bins, steps, lr)
    changes = tuning.changes()
    out = out or run
    names = [f"{sigma:.3g}" for sigma in tuning.centers]
    show(names, changes)
    write(out / "noise-bins.csv", names, changes)
    save_figure(draw(names, changes), out / "noise-bins.png")
    click.echo(f"\n{steps} steps of {config.batch_size} images each, learning rate {lr:.3g}; {out / 'noise-bins.png'}")


@dataclass(frozen=True)
class FineTuning:
    """One network, fine-tuned on one bin of noise levels after the other."""

    config: TrainingConfig
    dataset: Dataset
    start: Precond
    bins: int
    steps: int
    lr: float

    @cached_property
    def objective(self) -> DenoisingLoss:
        """Noise levels as in the run, weighted as by EDM."""
        return DenoisingLoss(self.config.objective().distribution, self.config.own_network.sigma_data, EDM())

    @cached_property
    def random(self) -> PositionRandom:
        """The run's; the fine-tuning takes the places after its end, whatever the bin."""
        return PositionRandom(self.config.seed, self.config.random_block, torch.device(self.config.device))

    @cached_property
    def feed(self) -> BatchStream:
        """The run's."""
        return BatchStream(self.config, self.dataset, self.random)

    @cached_property
    def measured_on(self) -> Batch:
        """Held-out images if there are any."""
        return self.feed.all_of(evenly_spaced(self.feed.holdout_set or self.feed.train_set, IMAGES))

    @property
    def centers(self) -> list[float]:
        """The median noise level of each bin."""
        return levels(self.objective.distribution, self.bins).tolist()

    def changes(self) -> np.ndarray:
        """Relative change of the loss, [bins + 1, bins].

        Row i is of the network fine-tuned on bin i (the last: on all); column j is the loss in bin j.
        """
        self.start.to(self.config.device)
        before = self.losses(self.start)
        rows = tqdm([*range(self.bins), ALL], desc="fine-tuning", leave=False, disable=None)
        return np.array([self.losses(self.fine_tuned(row)) / before - 1 for row in rows])

    def fine_tuned(self, bin_number: int) -> Precond:
        """A copy of the network, trained on one bin only; the average of its weights meanwhile."""
        net = copy.deepcopy(self.start).train().requires_grad_(True)
        net.logvar_linear.requires_grad_(False)  # the loss is without learned uncertainty
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr, betas=self.config.betas)
        ema = PowerFunctionEMA(net, [LENGTH])
        torch.manual_seed(0)  # of dropout
        end = place = self.config.duration
        for microbatches in islice(self.feed.steps(end), self.steps):
            force_weight_normalization_(net)
            optimizer.zero_grad()
            for images, labels, _ in microbatches:
                self.loss(net, images, labels, bin_number, place).backward()
                place += len(images)
            optimizer.step()
            ema.update(place - end)
        net.load_state_dict(ema.average(LENGTH))
        return net.eval().requires_grad_(False)

    def loss(self, net: Precond, images: Tensor, labels: Tensor | None, bin_number: int, place: int) -> Tensor:
        """Summed over pixels; its share of the mean over a step's images."""
        stop = place + len(images)
        uniform = self.random.uniform(Stream.SIGMA, place, stop).double()
        quantile = uniform if bin_number == ALL else (bin_number + uniform) / self.bins
        sigma = self.objective.distribution.sigma(torch.special.ndtri(quantile.clamp(1e-9, 1 - 1e-9)).float())
        noise = self.random.normal(Stream.NOISE, place, stop, tuple(images.shape[1:]))
        return self.objective(net, images, labels, sigma=sigma, noise=noise).sum() / self.config.batch_size

    def losses(self, net: Precond) -> np.ndarray:
        """Mean loss in each bin."""
        sigmas = levels(self.objective.distribution, self.bins * PER_BIN).tolist()
        found = loss_at_levels(net, *self.measured_on[:2], sigmas, self.config.images_per_forward)
        return np.reshape(found.losses, (self.bins, PER_BIN)).mean(axis=1)


def show(names: Sequence[str], changes: np.ndarray) -> None:
    """Print the matrix in per cent."""
    click.echo("Change of the loss in % around each noise level (columns), fine-tuned around each (rows):")
    click.echo(f"{'':>9}" + "".join(f"{name:>9}" for name in names))
    for name, row in zip([*names, "all"], changes, strict=True):
        click.echo(f"{name:>9}" + "".join(f"{100 * change:+9.2f}" for change in row))


def write(path: Path, names: Sequence[str], changes: np.ndarray) -> None:
    """The matrix as it is, not in per cent."""
    with atomic_output(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fine_tuned_at", *names])
        writer.writerows([name, *row] for name, row in zip([*names, "all"], changes.tolist(), strict=True))


def draw(names: Sequence[str], changes: np.ndarray) -> Figure:
    """A heat map: blue where the loss falls, red where it rises."""
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
