"""Passes over all weights once per step, against the bytes that they move; and whether the largest network fits."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from edm2.networks import build_network, force_weight_normalization_
from edm2.planning.costs import estimate_memory
from edm2.tools.bench.device.findings import Finding, Parts, row
from edm2.tools.bench.device.setup import Setup
from edm2.tools.bench.timing import Work
from edm2.tools.bench.workload import step_on
from edm2.training.distributed.strategies import clean_
from edm2.training.step import TrainStep

FLOAT32 = 4


def parts(setup: Setup) -> Parts:
    """Passes over the weights of the first network, then the memory of the largest, then the passes compiled."""
    preset = setup.scale.presets[0]
    found: dict[str, Callable[[], Iterator[Finding]]] = {"passes": partial(passes, setup, preset, lambda x: x, "eager")}
    for recompute, batch in itertools.product((False, True), setup.scale.large_batches):
        name = f"{setup.scale.large}, {batch} images{', recomputed' if recompute else ''}"
        found[name] = partial(large_step, setup, name, batch, recompute)
    return {**found, "compiled passes": partial(passes, setup, preset, setup.compiled, "compiled")}


def passes(setup: Setup, preset: str, form: Callable[[Work], Work], name: str) -> Iterator[Finding]:
    """Time each pass as training makes it, or with its operations compiled into kernels that fuse what they can.

    Bytes are the least for float32: normalization reads and writes the weights; cleaning reads and writes gradients;
    Adam reads 4 tensors and writes 3; each of two averages is read and written, and the weights are read once.

    Args:
        setup: Surroundings.
        preset: Network.
        form: Function that compiles each pass, or leaves it as it is.
        name: Name of this form.
    """
    workload = setup.workload(preset, setup.scale.micro_batch)
    step = TrainStep(workload.config, workload.net())
    step_on(step, workload.inputs())
    size = FLOAT32 * workload.parameters
    weights = [p.detach() for p in step.net.parameters()]
    gradients = [p.grad for p in step.net.parameters() if p.grad is not None]
    averages = [[p.clone() for p in weights] for _ in range(2)]

    def average() -> None:
        for each in averages:
            torch._foreach_lerp_(each, weights, 0.01)

    works: dict[str, tuple[int, Work]] = {
        "forced normalization": (2 * size, lambda: force_weight_normalization_(step.net)),
        "gradients cleaned": (2 * size, lambda: clean_(gradients, torch.nn.utils.get_total_norm)),
        "Adam": (7 * size, lambda: step.optimizer.step()),
        "two averages": (5 * size, average),
    }
    for what, (moved, work) in works.items():
        yield from setup.by_turns({f"{preset}, {what}, {name}": form(work)}, bytes=moved)
    setup.free()


def large_step(setup: Setup, name: str, batch: int, recompute: bool) -> Iterator[Finding]:
    """Take two steps of the largest network by micro-batches, and compare their memory with the estimate."""
    workload = setup.workload(setup.scale.large, 2 * batch)
    config = replace(workload.config, micro_batch=batch, recompute=recompute)
    estimate = estimate_memory(replace(config, device="cuda"))
    with torch.device(setup.device):
        net = build_network(workload.network)
    setup.free()
    if setup.on_cuda:
        torch.cuda.reset_peak_memory_stats()
    step = TrainStep(config, net)
    for _ in range(2):
        step_on(step, workload.inputs())
    timing = setup.clock().time(partial(step_on, step, workload.inputs()))
    yield row(
        name,
        peak_GB=torch.cuda.max_memory_allocated() / 1e9 if setup.on_cuda else None,
        estimated_GB=(estimate.total - estimate.spare) / 1e9,
        estimated_with_spare_GB=estimate.total / 1e9,
        images_per_forward=step.images_per_forward,
        ms=timing.seconds * 1e3,
        **{"% of the bf16 ceiling": 100 * workload.training_flops / timing.seconds / setup.ceilings.flops_per_second},
    )
