"""What a run on several processes is forecast to need and to send is what processes need and send."""

import ctypes
import gc
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jobs import Job

from edm2.networks import NetworkConfig
from edm2.planning.costs import estimate_memory
from edm2.planning.forecast import traffic
from edm2.training import TrainingConfig
from edm2.training.data.batches import Batch
from edm2.training.distributed.processes import Processes, joined_processes
from edm2.training.initialization import fresh_network
from edm2.training.step import TrainStep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and tells glibc how to allocate"),
]

TINY = NetworkConfig(8, 3, 0, model_channels=32, channel_mult=(1, 2), num_blocks=2, channels_per_head=32)


def run_of(network: NetworkConfig, processes: int, images: int, rounds: int = 1, **settings) -> TrainingConfig:
    batch = processes * images * rounds
    return TrainingConfig(
        data="none", out="none", network=network, batch_size=batch, duration=batch, micro_batch=images, **settings
    )


def memory(entry: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak. getrusage would begin with the peak of the parent."""
    return 1024 * int(re.findall(entry + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def train(config: TrainingConfig, processes: Processes) -> None:
    """Three steps, and the copy of an average that a snapshot is written from.

    Adam's moments come into being in the first step, DDP's final buckets in the second, which touches them at its end:
    memory that nothing was written to is not resident. Every tensor above 64 kB gets memory of its own from the system,
    and gives it back; otherwise glibc's malloc would leave gaps, for which the forecast has an allowance.
    """
    step = TrainStep(config, fresh_network(config.network, config.seed), processes=processes)
    m_mmap_threshold = -3  # from malloc.h; the step sets it high, and keeps what is freed
    ctypes.CDLL(None).mallopt(m_mmap_threshold, 1 << 16)
    images = torch.zeros(step.images_per_forward, config.network.img_channels, *config.network.size)
    for _ in range(3):
        step([Batch(images)] * (step.images_per_rank // len(images)))
    step.ema.average(config.sigma_rels[0])
    processes.wait()


def tell_growth(config: TrainingConfig, said: Path) -> None:
    """Growth of the first process above what it was after a tiny run, which loads all libraries."""
    torch.set_num_threads(1)
    with joined_processes() as processes:
        train(replace(config, network=replace(config.network, model_channels=8, img_resolution=8)), processes)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of importing
        before = memory("VmRSS")
        train(config, processes)
        if processes.is_first:
            said.write_text(str(memory("VmHWM") - before))


@pytest.mark.parametrize(
    ("processes", "width", "images", "rounds", "settings"),
    [
        (1, 96, 2, 2, {}),
        (1, 32, 16, 2, {}),
        (2, 64, 4, 2, {}),
        (2, 64, 4, 1, {"shard": True}),
        (2, 64, 4, 2, {"shard": True, "recompute": True}),
    ],
    ids=["wide", "many-images", "ddp-accumulating", "fsdp", "fsdp-accumulating-recomputing"],
)
def test_a_process_takes_as_much_memory_as_forecast(tmp_path, processes, width, images, rounds, settings):
    """To 15 %. Libraries keep some 10 MB for themselves, which the forecast has an allowance for, left out here; of
    shares, it assumes that the largest blocks travel at the worst moment."""
    config = run_of(replace(TINY, img_resolution=32, model_channels=width), processes, images, rounds, **settings)
    job = Job(processes, tmp_path, tell_growth, config, tmp_path / "grown")
    assert job.wait() == [0] * processes, job.words(0)
    estimate = estimate_memory(config, processes)
    assert estimate.persistent + estimate.step == pytest.approx(int((tmp_path / "grown").read_text()), rel=0.15)


def bytes_written() -> int:
    """By this process so far, into sockets too."""
    return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])


def tell_bytes_sent(config: TrainingConfig, said: Path) -> None:
    with joined_processes() as processes:
        step = TrainStep(config, fresh_network(config.network, config.seed), processes=processes)
        images = torch.zeros(step.images_per_forward, config.network.img_channels, *config.network.size)
        microbatches = [Batch(images)] * (step.images_per_rank // len(images))
        step(microbatches)  # the first one also agrees on the order of buckets
        processes.wait()
        before = bytes_written()
        step(microbatches)
        sent = bytes_written() - before
        processes.wait()
        if processes.is_first:
            said.write_text(json.dumps(sent))


@pytest.mark.parametrize(
    ("processes", "rounds", "shard"),
    [(2, 2, False), (4, 1, False), (2, 1, True), (2, 3, True), (4, 2, True)],
    ids=["ddp-accumulating", "four-ddp", "fsdp", "fsdp-accumulating", "four-fsdp-accumulating"],
)
def test_a_process_sends_as_many_bytes_as_forecast(tmp_path, processes, rounds, shard):
    """To a per cent: messages have headers. gloo scatters nothing: where it is asked to reduce and scatter, it sends
    sums to everybody, which is twice as much."""
    config = run_of(TINY, processes, 2, rounds, shard=shard)
    job = Job(processes, tmp_path, tell_bytes_sent, config, tmp_path / "sent")
    assert job.wait() == [0] * processes, job.words(0)
    forecast = traffic(config.network, processes, shard, rounds)
    sent = json.loads((tmp_path / "sent").read_text())
    assert sent == pytest.approx(forecast.total + forecast.reduce_scatter, rel=0.01)
