"""Evaluations and Heun's method: plain, folded, compiled, captured in CUDA graphs, with guidance and without."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from edm2.networks import fold
from edm2.sampling.cuda_graphs import CapturedForward
from edm2.sampling.samplers.heun import Denoiser
from edm2.tools.bench.device.findings import Finding, Parts, failed, row
from edm2.tools.bench.device.golden import rms_rel
from edm2.tools.bench.device.setup import Setup, count_launches
from edm2.tools.bench.plain import plain_copy, plain_heun
from edm2.tools.bench.sections import GUIDANCE, HEUN_EVALUATIONS, evaluation, heun
from edm2.tools.bench.timing import Work
from edm2.tools.bench.workload import Workload


def parts(setup: Setup) -> Parts:
    """Evaluations of few and many images, then whole samplers."""
    (first, *others), (batch, *batches) = setup.scale.presets, setup.scale.sample_batches
    found: dict[str, Callable[[], Iterator[Finding]]] = {
        f"{first}: evaluation of {batch}": partial(evaluations, setup, first, batch),
        f"{first}: Heun": partial(samplers, setup, first),
    }
    for preset, size in [*((first, size) for size in batches), *((preset, batch) for preset in others)]:
        found[f"{preset}: evaluation of {size}"] = partial(evaluations, setup, preset, size)
    return found


def forms(setup: Setup, workload: Workload) -> dict[str, Denoiser]:
    """Denoisers of one network by name, all in bfloat16."""
    folded = fold(workload.net(), torch.bfloat16)
    compiled = setup.compiled(folded)
    return {"folded": folded, "compiled": compiled} | (
        {"folded, captured": CapturedForward(folded), "compiled, captured": CapturedForward(compiled)}
        if setup.on_cuda
        else {}
    )


def plain_net(workload: Workload, dtype: torch.dtype) -> Any:
    """Network of the workload in the plain form."""
    net = plain_copy(workload.net().eval())
    net.compute_dtype = dtype
    return net


@torch.no_grad()
def evaluations(setup: Setup, preset: str, batch: int) -> Iterator[Finding]:
    """One evaluation in every form: time, launches, and how far it is from float32."""
    workload = setup.workload(preset, batch)
    inputs, denoisers = workload.inputs(), forms(setup, workload)
    works: dict[str, Work] = {
        f"{preset}, {batch} images, plain, {name}": evaluation(plain_net(workload, dtype), inputs)
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16))
    }
    ours = {f"{preset}, {batch} images, {name}": evaluation(net, inputs) for name, net in denoisers.items()}
    yield from setup.by_turns(works | ours, images=batch, flops=workload.evaluation_flops)
    exact: Any = evaluation(fold(workload.net()), inputs)()
    for name, work in ours.items():
        try:
            counted = count_launches(name, work, setup)
            counted["values"] |= row("", difference_from_fp32=rms_rel(work(), exact))["values"]  # type: ignore[arg-type]  # a `Work` may return anything
            yield counted
        except Exception as error:  # a form that this device does not have
            yield failed(name, error)
    setup.free()


def samplers(setup: Setup, preset: str) -> Iterator[Finding]:
    """Heun's method of several numbers of evaluations, with guidance and without; of most, ours alone."""
    batch = setup.scale.sample_batches[0]
    workload = setup.workload(preset, batch)
    inputs, denoisers = workload.inputs(), forms(setup, workload)
    plain = plain_net(workload, torch.float16)
    for steps in setup.scale.steps:
        for guide in (None, plain) if inputs.labels is not None else (None,):
            count = 2 * steps - 1
            what = f"{preset}, {batch} images, {count} evaluations{'' if guide is None else ', guided'}"
            works: dict[str, Work] = {}
            if steps != max(setup.scale.steps):
                works[f"{what}, plain, fp16"] = partial(
                    plain_heun, plain, inputs.noise, inputs.labels, num_steps=steps, guide=guide, guidance=GUIDANCE
                )
            works |= {f"{what}, {name}": heun(net, inputs, steps, guide is not None) for name, net in denoisers.items()}
            flops = workload.evaluation_flops * count * (1 if guide is None else 2)
            yield from setup.by_turns(works, images=batch * count / HEUN_EVALUATIONS, flops=flops)
    setup.free()
