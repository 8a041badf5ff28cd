"""The forecast of memory, against training processes: `python -m edm2.tools.bench.studies.plan_memory`.

Each case trains for three steps, by itself or in two processes over gloo, and takes the copy of an average that a
snapshot is written from. Measured is how much the resident memory of the first process grows above what it was after
another, tiny run, which loads all libraries. Every tensor above 64 kB gets memory of its own from the system, and gives
it back; otherwise glibc's malloc would leave gaps, for which the forecast has an allowance that is left out here.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import click
import torch

from edm2.networks import NetworkConfig
from edm2.planning.costs import estimate_memory
from edm2.tools.bench.studies.common import memory
from edm2.training import TrainingConfig
from edm2.training.data.batches import Batch
from edm2.training.distributed.processes import Processes, joined_processes
from edm2.training.initialization import fresh_network
from edm2.training.step import TrainStep

STEPS = 3
"""Adam's moments come into being in the first, DDP's final buckets in the second, which touches them at its end: memory
that nothing was written to is not resident."""

M_MMAP_THRESHOLD = -3
"""From malloc.h."""


@click.command()
@click.option("--channels", default=128, show_default=True, help="Base width of the network.")
@click.option("--size", default=32, show_default=True, help="Height and width of the images.")
@click.option("--images", default=8, show_default=True, help="Per forward pass.")
@click.option("--worker", hidden=True)
def main(channels: int, size: int, images: int, worker: str | None) -> None:
    """Train in small, and compare memory with its forecast."""
    if worker:
        grown = measure_growth(TrainingConfig.from_json(json.loads(worker)))
        if grown is not None:
            click.echo(grown)
        return
    network = NetworkConfig(size, 3, 0, model_channels=channels, channel_mult=(1, 2), num_blocks=2)
    click.echo("| Case | Forecast, MB | Measured, MB | Forecast / measured |\n|---|---|---|---|")
    for (kind, processes, shard), rounds, recompute in product(
        (("alone", 1, False), ("2 processes, DDP", 2, False), ("2 processes, FSDP2", 2, True)), (1, 2), (False, True)
    ):
        batch = processes * rounds * images
        config = TrainingConfig(
            data="none", out="none", network=network, batch_size=batch, duration=batch, micro_batch=images,
            shard=shard, recompute=recompute,
        )  # fmt: skip
        title = ", ".join([kind, "one round" if rounds == 1 else f"{rounds} rounds", *["recompute"] * recompute])
        estimate, measured = estimate_memory(config, processes), measure_in_processes(config, processes)
        forecast = estimate.persistent + estimate.step
        click.echo(f"| {title} | {forecast / 1e6:.0f} | {measured / 1e6:.0f} | {forecast / measured:.3f} |")


def measure_in_processes(config: TrainingConfig, processes: int) -> int:
    """Bytes that the first of new processes grows by.

    Raises:
        click.ClickException: a process failed.
    """
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", __spec__.name, "--worker", json.dumps(config.to_json())],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise click.ClickException(done.stderr.strip()[-2000:])
    return int(done.stdout)


def measure_growth(config: TrainingConfig) -> int | None:
    """Train, and return how many bytes this process took for it; None in all processes but the first."""
    torch.set_num_threads(1)
    with joined_processes() as processes:
        _train(replace(config, network=replace(config.network, model_channels=8, img_resolution=8)), processes)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of importing
        before = memory("VmRSS")
        _train(config, processes)
        return memory("VmHWM") - before if processes.is_first else None


def _train(config: TrainingConfig, processes: Processes) -> None:
    step = TrainStep(config, fresh_network(config.network, config.seed), processes=processes)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)  # the command line sets it high, and keeps what is freed
    images = torch.zeros(step.images_per_forward, config.network.img_channels, *config.network.size)
    for _ in range(STEPS):
        step([Batch(images)] * (step.images_per_rank // len(images)))
    step.ema.average(config.sigma_rels[0])
    processes.wait()


if __name__ == "__main__":
    main()
