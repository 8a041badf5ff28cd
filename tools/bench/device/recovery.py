"""Running out of memory, saving while training goes on, and copies to the device."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edm2.tools.bench.device.findings import Finding, Parts, row
from edm2.tools.bench.device.setup import Setup
from edm2.tools.bench.workload import Inputs, Workload
from edm2.training import Trainer
from edm2.training.callbacks import Callback
from edm2.training.data.batches import Batch, BatchStream
from edm2.training.data.transfer import Transfer
from edm2.training.draws import GivenDraws
from edm2.training.step import TrainStep

STEPS_BETWEEN = 8
"""Steps before and after a checkpoint."""


def parts(setup: Setup) -> Parts:
    """Each on the smallest of the networks."""
    preset = setup.scale.presets[-1]
    return {
        "out of memory": partial(out_of_memory, setup, preset),
        "copies": partial(copies, setup, preset),
        "checkpoint": partial(checkpoint, setup, preset),
    }


def out_of_memory(setup: Setup, preset: str) -> Iterator[Finding]:
    """Take a step with too large a micro-batch, and compare its loss with that of one that fits."""
    workload = setup.workload(preset, setup.scale.batch)
    inputs, net = workload.inputs(), workload.net()
    fitting = TrainStep(setup.config(workload), net)
    expected = loss_of(fitting, inputs)
    if setup.on_cuda:  # as if the device were hardly larger than what that step took
        total = torch.cuda.get_device_properties(setup.device).total_memory
        limit = 1.3 * torch.cuda.max_memory_reserved()
    del fitting
    setup.free()
    step = TrainStep(setup.config(workload, micro_batch=None), workload.net())
    if setup.on_cuda:
        torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0))
    else:
        step.denoiser = partial(refusing, step.denoiser, setup.scale.micro_batch)
    start = time.perf_counter()
    try:
        loss = loss_of(step, inputs)
    finally:
        if setup.on_cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
    yield row(
        f"{preset}, too large a micro-batch", images_before=setup.scale.batch, images_after=step.images_per_forward,
        relative_difference_of_the_loss=abs(loss / expected - 1), first_step_s=time.perf_counter() - start,
        simulated=not setup.on_cuda,
    )  # fmt: skip


def refusing(denoiser: Callable[..., Any], most: int, x: Tensor, *args: Any, **options: Any) -> Any:
    """Call a denoiser unless there are too many images, as where memory runs out. Raises torch.OutOfMemoryError."""
    if len(x) > most:
        raise torch.OutOfMemoryError(f"{len(x)} images")
    return denoiser(x, *args, **options)


def loss_of(step: TrainStep, inputs: Inputs) -> float:
    """Take one step on these inputs; return its loss."""
    step.draws = GivenDraws(step.images_seen, inputs.sigma, inputs.noise)
    return float(step([Batch(inputs.images, inputs.labels)]).loss)


def copies(setup: Setup, preset: str) -> Iterator[Finding]:
    """Time copies of a batch from pinned and from other memory, and steps with copies on a stream of their own."""
    workload = setup.workload(preset, setup.scale.micro_batch)
    data = workload.dataset.images(range(setup.scale.micro_batch))
    sources = {"pageable": data, **({"pinned": data.pin_memory()} if setup.on_cuda else {})}
    for name, source in sources.items():
        timing = setup.clock().time(partial(source.to, setup.device, non_blocking=True, copy=True))
        yield row(
            f"{preset}, copy of {data.nbytes / 1e6:.3g} MB, {name}",
            ms=timing.seconds * 1e3,
            GB_per_second=data.nbytes / timing.seconds / 1e9,
        )
    step = TrainStep(workload.config, workload.net())
    works = {}
    for name, own_stream in (("on one stream", False), ("on its own stream", True)):
        stream = BatchStream(workload.config, workload.dataset, step.random)
        stream.transfer = Transfer(stream.device, own_stream)
        works[f"{preset}, four steps, copies {name}"] = partial(four_steps, step, stream.steps(start=0))
    yield from setup.by_turns(works, images=4 * setup.scale.micro_batch)


def four_steps(step: TrainStep, batches: Iterator[list[Batch]]) -> None:
    """Read and take four steps."""
    for _ in range(4):
        step(next(batches))


class Stopwatch(Callback):
    """Notes when each step is done on the device."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.times: list[float] = []

    def on_step(self, trainer: Any, result: Any) -> None:
        """Wait, and note the time."""
        self.setup.wait()
        self.times.append(time.perf_counter())


def checkpoint(setup: Setup, preset: str) -> Iterator[Finding]:
    """Find out for how long a checkpoint holds training up, and for how long it slows it down."""
    workload: Workload = setup.workload(preset, setup.scale.micro_batch)
    batch, count = setup.scale.micro_batch, STEPS_BETWEEN
    watch = Stopwatch(setup)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            workload.config, out=folder, duration=2 * count * batch, checkpoint_every=count * batch,
            status_every=2 * count * batch, snapshot_every=2 * count * batch, sample_every=None, checkpoint_seconds=1e9,
        )  # fmt: skip
        Trainer(config, dataset=workload.dataset, callbacks=[watch]).run()
        end = time.perf_counter()
    gaps = [b - a for a, b in zip(watch.times[:-1], watch.times[1:], strict=True)]
    usual = statistics.median(gaps[1 : count - 1])
    yield row(
        f"{preset}, checkpoint of {workload.parameters * 20 / 1e9:.2g} GB",
        usual_step_ms=usual * 1e3,
        stall_ms=(gaps[count - 1] - usual) * 1e3,
        later_steps_ms=statistics.median(gaps[count:]) * 1e3,
        end_of_the_run_s=end - watch.times[-1],
    )
