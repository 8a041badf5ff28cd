"""Training steps of the paper's networks: beside the plain form, compiled, by parts, and what the host asks for."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from edm2.post_hoc_ema import sigma_rel_to_gamma
from edm2.tools.bench.device.findings import Finding, Parts, row
from edm2.tools.bench.device.setup import Setup, count_launches
from edm2.tools.bench.plain import PlainTraining, plain_copy
from edm2.tools.bench.report import Measurement, Peak
from edm2.tools.bench.sections import Bench, training as training_by_parts
from edm2.tools.bench.timing import Work
from edm2.tools.bench.workload import Inputs, Workload, step_on
from edm2.training.config import DTYPES
from edm2.training.step import TrainStep


def parts(setup: Setup) -> Parts:
    """Whole steps first; compiling takes the longest."""
    presets = setup.scale.presets
    first, last, others = presets[0], presets[-1], presets[1:]
    order: list[tuple[str, Callable[[Setup, str], Iterator[Finding]], Sequence[str]]] = [
        ("step", against_plain, presets),
        ("compiled step", compiled_step, [first]),
        ("launches of a step", launches, [first]),
        ("parts of a step", by_parts, [first]),
        ("cuDNN's choice", cudnn_benchmark, [first]),
        ("compiled step with CUDA graphs", captured_step, [last]),
        ("compiled step", compiled_step, others),
        ("parts of a step", by_parts, others),
    ]
    return {
        f"{preset}: {name}": partial(measure, setup, preset) for name, measure, wanted in order for preset in wanted
    }


def our_step(setup: Setup, workload: Workload, precision: str = "bf16") -> TrainStep:
    """Make our step of a workload."""
    return TrainStep(setup.config(workload, precision=precision), workload.net())


def plain_step(setup: Setup, workload: Workload, precision: str) -> Work:
    """Return a step of the plain form by the same micro-batches."""
    config, inputs, size = workload.config, workload.inputs(), setup.scale.micro_batch
    net = plain_copy(workload.net())
    net.compute_dtype = DTYPES[precision]
    gammas = [float(gamma) for gamma in sigma_rel_to_gamma(config.sigma_rels)]
    plain = PlainTraining(net, len(inputs.images), lambda seen: config.ref_lr, config.betas, gammas, config.loss_scale)
    whole = inputs if inputs.labels is not None else inputs._replace(labels=inputs.sigma)  # something to split
    rounds = [
        Inputs(*part) for part in zip(*(tensor.split(size) for tensor in whole if tensor is not None), strict=True)
    ]
    rounds = [part if inputs.labels is not None else part._replace(labels=None) for part in rounds]
    return lambda: plain.step(rounds)


def against_plain(setup: Setup, preset: str) -> Iterator[Finding]:
    """Ours eager beside the plain form in both half precisions."""
    workload = setup.workload(preset, setup.scale.batch)
    works = {f"{preset}, plain, {precision}": plain_step(setup, workload, precision) for precision in ("fp16", "bf16")}
    works[f"{preset}, ours, eager, bf16"] = partial(step_on, our_step(setup, workload), workload.inputs())
    yield from setup.by_turns(works, images=setup.scale.batch, flops=workload.training_flops)


def compiled_step(setup: Setup, preset: str, **options: Any) -> Iterator[Finding]:
    """Ours eager and compiled, by turns."""
    workload = setup.workload(preset, setup.scale.batch)
    eager, compiled = our_step(setup, workload), our_step(setup, workload)
    compiled.denoiser = setup.compiled(compiled.net, **options)
    name = f"compiled{', CUDA graphs' if options else ''}"
    works = {
        f"{preset}, ours, eager, bf16": partial(step_on, eager, workload.inputs()),
        f"{preset}, ours, {name}, bf16": partial(step_on, compiled, workload.inputs()),
    }
    yield from setup.by_turns(works, images=setup.scale.batch, flops=workload.training_flops)
    setup.free()


def captured_step(setup: Setup, preset: str) -> Iterator[Finding]:
    """Ours eager and compiled into CUDA graphs, which only one compiler makes."""
    return compiled_step(setup, preset, **({"mode": "reduce-overhead"} if setup.scale.backend == "inductor" else {}))


def cudnn_benchmark(setup: Setup, preset: str) -> Iterator[Finding]:
    """Ours eager with the kernels that cuDNN finds fastest by trying; a resumed run may find others."""
    workload = setup.workload(preset, setup.scale.batch)
    step = partial(step_on, our_step(setup, workload), workload.inputs())
    torch.backends.cudnn.benchmark = True
    try:
        works = {f"{preset}, ours, eager, cuDNN tries": step}
        yield from setup.by_turns(works, images=setup.scale.batch, flops=workload.training_flops)
    finally:
        torch.backends.cudnn.benchmark = False


def launches(setup: Setup, preset: str) -> Iterator[Finding]:
    """Launches and waiting of one step of one micro-batch, ours and the plain form's."""
    workload = setup.workload(preset, setup.scale.micro_batch)
    ours = partial(step_on, our_step(setup, workload), workload.inputs())
    yield count_launches(f"{preset}, step, ours, eager", ours, setup)
    yield count_launches(f"{preset}, step, plain", plain_step(setup, workload, "bf16"), setup)


def by_parts(setup: Setup, preset: str) -> Iterator[Finding]:
    """The parts of an eager step of one micro-batch, data included."""
    workload = setup.workload(preset, setup.scale.micro_batch)
    bench = Bench(workload, setup.clock(), [Peak("bf16", setup.ceilings.flops_per_second)])
    for found in training_by_parts(bench):
        if isinstance(found, Measurement):
            yield row(
                f"{preset}, {found.part}",
                **{
                    "ms": found.timing.seconds * 1e3,
                    "% of the bf16 ceiling": 100 * found.shares[0] if found.shares else None,
                },
            )
