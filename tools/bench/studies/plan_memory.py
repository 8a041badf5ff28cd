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
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import product

import click
import torch

from edm2.networks import NetworkConfig
from edm2.planning.costs import MemoryEstimate, estimate_memory
from edm2.training import TrainingConfig
from edm2.training.data.batches import Batch
from edm2.training.distributed.processes import Processes, joined_processes
from edm2.training.initialization import fresh_network
from edm2.training.step import TrainStep

STEPS = 3
"""Adam's moments come into being in the first, DDP's final buckets in the second, which touches them at its end: memory
that nothing was written to is not resident."""

M_MMAP_THRESHOLD = -3
"""Of malloc.h."""


@dataclass(frozen=True)
class Case:
    """A way to train."""

    config: TrainingConfig
    processes: int

    def __str__(self) -> str:
        config = self.config
        kind = "alone" if self.processes == 1 else f"{self.processes} processes, {'FSDP2' if config.shard else 'DDP'}"
        rounds = config.batch_size // self.processes // config.images_per_forward
        words = [kind, "one round" if rounds == 1 else f"{rounds} rounds", *["recompute"] * config.recompute]
        return ", ".join(words)

    def estimate(self) -> MemoryEstimate:
        """The forecast."""
        return estimate_memory(self.config, self.processes)

    def measure(self) -> int:
        """Bytes that the first process grows by.

        Raises:
            RuntimeError: a process failed.
        """
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
        done = subprocess.run(
            [sys.executable, "-m", *torchrun, "-m", __spec__.name, "--worker", json.dumps(self.config.to_json())],
            capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{self}: {done.stderr.strip()[-2000:]}")
        return int(done.stdout)


def cases(network: NetworkConfig, images: int) -> list[Case]:
    """Alone, with copies and with shares, in one round and in several, with and without recomputation."""
    found = []
    for (processes, shard), rounds, recompute in product([(1, False), (2, False), (2, True)], (1, 2), (False, True)):
        batch = processes * rounds * images
        config = TrainingConfig(
            data="none", out="none", network=network, batch_size=batch, duration=batch, micro_batch=images,
            shard=shard, recompute=recompute,
        )  # fmt: skip
        found.append(Case(config, processes))
    return found


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
    for case in cases(network, images):
        estimate, measured = case.estimate(), case.measure()
        forecast = estimate.persistent + estimate.step
        click.echo(f"| {case} | {forecast / 1e6:.0f} | {measured / 1e6:.0f} | {forecast / measured:.3f} |")


def measure_growth(config: TrainingConfig) -> int | None:
    """Train, and say how many bytes this process took for it; None in all processes but the first. Linux with glibc."""
    torch.set_num_threads(1)
    with joined_processes() as processes:
        tiny = replace(config.own_network, model_channels=8, img_resolution=8)
        _train(replace(config, network=tiny), processes)
        gc.collect()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the peak of importing
        before = _memory("VmRSS")
        _train(config, processes)
        return _memory("VmHWM") - before if processes.is_first else None


def _train(config: TrainingConfig, processes: Processes) -> None:
    step = TrainStep(config, fresh_network(config.own_network, config.seed), processes=processes)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)  # the command line sets it high, and keeps what is freed
    images = torch.zeros(step.images_per_forward, config.own_network.img_channels, *config.own_network.size)
    for _ in range(STEPS):
        step([Batch(images)] * (step.images_per_rank // len(images)))
    step.ema.average(config.sigma_rels[0])
    processes.wait()


def _memory(entry: str) -> int:
    """Bytes; getrusage would begin with the peak of the process that started this one."""
    with open("/proc/self/status") as file:
        return 1024 * int(re.findall(entry + r":\s+(\d+) kB", file.read())[0])


if __name__ == "__main__":
    main()
