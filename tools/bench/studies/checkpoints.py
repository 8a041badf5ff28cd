"""Time in which training stands still for a checkpoint: `python -m edm2.tools.bench.studies.checkpoints`.

Runs of the trainer take turns: one writes its checkpoints while it goes on, as always, the other waits for each. The
time in which the training thread makes no step counts, in relation to the interval between two checkpoints; the copy of
all tensors is part of it, and so is waiting for the checkpoint before if the disk is slower than the interval. The
processor time of that thread is steadier where others are at work, but does not see waiting.
"""

import tempfile
import time
from pathlib import Path

import click
import torch

from edm2.networks import NetworkConfig
from edm2.tools.bench.studies.common import medians
from edm2.training import ArrayDataset, Trainer, TrainingConfig
from edm2.training.run.disk import file_sizes
from edm2.training.run.speed import with_unit


class TimedTrainer(Trainer):
    """Notes (start, seconds, processor seconds of this thread) of each checkpoint; waits for it if `waits`."""

    waits = False
    stalls: list[tuple[float, float]]
    begun: list[float]

    def run(self) -> None:
        self.stalls: list[tuple[float, float, float]] = []
        super().run()

    def save_checkpoint(self) -> None:
        start, processor = time.perf_counter(), time.thread_time()
        super().save_checkpoint()
        if self.waits:
            self.checkpoints.wait()
        self.stalls.append((start, time.perf_counter() - start, time.thread_time() - processor))


@click.command()
@click.option("--channels", default=64, show_default=True, help="Of the network; 64 make 31 million parameters.")
@click.option("--steps", default=40, show_default=True, help="Between two checkpoints.")
@click.option("--batch", default=4, show_default=True, help="Images per step.")
@click.option("--turns", default=3, show_default=True, help="Runs of each kind, of two intervals each.")
def main(channels: int, steps: int, batch: int, turns: int) -> None:
    """Measure runs of both kinds by turns."""
    torch.set_num_threads(1)
    stalls: dict[str, list[tuple[float, float, float]]] = {"asynchronous": [], "synchronous": []}
    for _ in range(turns):
        for kind, measured in stalls.items():
            measured += measure(kind == "synchronous", channels, steps, batch)
    for kind, measured in stalls.items():
        seconds, processor, interval = medians(measured)
        click.echo(
            f"{kind}: training stands still for {seconds:.2f} s ({processor:.2f} s of its thread's processor time) "
            f"every {interval:.0f} s: {100 * seconds / interval:.2g} %; every 10 minutes {100 * seconds / 600:.2g} %"
        )


def measure(waits: bool, channels: int, steps: int, batch: int) -> list[tuple[float, float, float]]:
    """Run once; (seconds, processor seconds, interval) of its checkpoints but the one at its end."""
    images = torch.randint(256, (64, 4, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            data="noise",
            out=str(Path(folder, "run")),
            network=NetworkConfig(16, 4, 0, model_channels=channels),
            batch_size=batch,
            duration=3 * steps * batch,
            checkpoint_every=steps * batch,
            snapshot_every=3 * steps * batch,
            status_every=steps * batch,
            workers=0,
        )
        trainer = TimedTrainer(config, dataset=ArrayDataset(images, torch.zeros(64, dtype=torch.int64)))
        trainer.waits = waits
        click.echo(f"{with_unit(file_sizes(config, trainer.net).checkpoint, 'B')} per checkpoint")
        trainer.run()
    pairs = zip(trainer.stalls, trainer.stalls[1:], strict=False)
    return [(seconds, processor, after - start) for (start, seconds, processor), (after, *_) in pairs]


if __name__ == "__main__":
    main()
