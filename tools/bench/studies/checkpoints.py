"""How long training stands still for a checkpoint: `python -m edm2.tools.bench.studies.checkpoints`.

Runs of the trainer take turns: one writes its checkpoints while it goes on, as always, the other waits for each. What
counts is the time in which the training thread makes no step, as a share of the interval between two checkpoints; the
copy of all tensors is part of it, and so is waiting for the checkpoint before if the disk is slower than the interval.
The processor time of that thread is steadier where others are at work, but does not see waiting.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import torch

from edm2.networks import NetworkConfig
from edm2.training import ArrayDataset, Trainer, TrainingConfig
from edm2.training.run.disk import file_sizes
from edm2.training.run.speed import with_unit

IMAGE = 16
"""Pixels, with four channels as latents have."""


class Timed(Trainer):
    """Notes when checkpoints begin and training goes on.

    Attributes:
        waits: Whether to wait for each checkpoint.
        stalls: (seconds, processor seconds of this thread) per checkpoint.
        begun: When each began.
    """

    waits = False
    stalls: list[tuple[float, float]]
    begun: list[float]

    def run(self) -> None:
        self.stalls, self.begun = [], []
        super().run()

    def save_checkpoint(self) -> None:
        start, processor = time.perf_counter(), time.thread_time()
        super().save_checkpoint()
        if self.waits:
            self.checkpoints.wait()
        self.stalls.append((time.perf_counter() - start, time.thread_time() - processor))
        self.begun.append(start)


class Waiting(Timed):
    """The comparison: a checkpoint is on the disk before the next step."""

    waits = True


@click.command()
@click.option("--channels", default=64, show_default=True, help="Of the network; 64 make 31 million parameters.")
@click.option("--steps", default=40, show_default=True, help="Between two checkpoints.")
@click.option("--batch", default=4, show_default=True, help="Images per step.")
@click.option("--turns", default=3, show_default=True, help="Runs of each kind, of two intervals each.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write; default: the folder for such things.")
def main(channels: int, steps: int, batch: int, turns: int, folder: Path | None) -> None:
    """Measure."""
    torch.set_num_threads(1)
    stalls: dict[type[Timed], list[tuple[float, float, float]]] = {Timed: [], Waiting: []}
    for _ in range(turns):
        for kind, measured in stalls.items():
            with tempfile.TemporaryDirectory(dir=folder) as place:
                measured += measure(kind, place, channels, steps, batch)
    for kind, title in ((Timed, "asynchronous"), (Waiting, "synchronous")):
        seconds, processor, interval = (statistics.median(column) for column in zip(*stalls[kind], strict=True))
        click.echo(
            f"{title}: training stands still for {seconds:.2f} s ({processor:.2f} s of its thread's processor time) "
            f"every {interval:.0f} s: {100 * seconds / interval:.2g} %; every 10 minutes {100 * seconds / 600:.2g} %"
        )


def measure(kind: type[Timed], place: str, channels: int, steps: int, batch: int) -> list[tuple[float, float, float]]:
    """(Seconds, processor seconds, interval) of the checkpoints of a run; the one at its end is left out."""
    network = NetworkConfig(IMAGE, 4, 0, model_channels=channels)
    config = TrainingConfig(
        data="noise",
        out=str(Path(place, "run")),
        network=network,
        batch_size=batch,
        duration=3 * steps * batch,
        checkpoint_every=steps * batch,
        snapshot_every=3 * steps * batch,
        status_every=steps * batch,
        workers=0,
    )
    images = torch.randint(256, (64, 4, IMAGE, IMAGE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    trainer = kind(config, dataset=ArrayDataset(images, torch.zeros(64, dtype=torch.int64)))
    click.echo(f"{kind.__name__}: {with_unit(file_sizes(config, trainer.net).checkpoint, 'B')} per checkpoint")
    trainer.run()
    intervals = [b - a for a, b in zip(trainer.begun, trainer.begun[1:], strict=False)]
    return [(*stall, interval) for stall, interval in zip(trainer.stalls, intervals, strict=False)]


if __name__ == "__main__":
    main()
