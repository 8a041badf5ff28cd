"""Expectations on paper: `python -m edm2.tools.bench.device.roofline`, or beside `--results DIR/results.json`.

Each operation takes as long as its arithmetic at the ceiling of a matrix product, or as long as its bytes at the
ceiling of a copy, whichever is longer. Operations and bytes are counted on torch's meta device, where attention is
counted as if its matrix were written. Summed over all operations that is the eager form on an ideal device; summed over
convolutions and products alone, a compiled form in which everything else is fused away: a real one lies between.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from edm2.networks import NetworkConfig, build_network, fold
from edm2.networks.reference import ReferencePrecond, reference_loss
from edm2.planning.costs import count_flops, count_parameters, estimate_memory
from edm2.tools.bench.device.findings import Finding, row, section_markdown
from edm2.tools.bench.device.machine import measured_ceilings
from edm2.tools.bench.device.setup import FULL, H200, Ceilings, Scale
from edm2.tools.bench.workload import Settings, Workload
from edm2.training import EDM2Loss

UPDATE_BYTES = {"forced normalization": 12, "gradients cleaned": 16, "Adam": 28, "two averages": 24}
"""Bytes that the passes over all weights move per weight, as they are made: a norm and a division; a norm, the cleaning
and a norm; 4 tensors read and 3 written; two blends of two tensors."""

HOST = 5e-6
"""Seconds that the host takes to ask for one operation, roughly."""


class Roofline(TorchDispatchMode):
    """Context that adds up the time which operations need at the ceilings.

    Attributes:
        flops: Operations of convolutions and products.
        bytes: Bytes read and written.
        launches: Operations that give the device something to do.
        seconds: Time of all operations.
        product_seconds: Time of convolutions and products alone.
    """

    def __init__(self, ceilings: Ceilings) -> None:
        super().__init__()
        self.ceilings = ceilings
        self.flops = self.bytes = self.launches = 0
        self.seconds = self.product_seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        aliases = [given.alias_info for given in func._schema.returns]
        if any(alias is not None and not alias.is_write for alias in aliases) or "empty" in func.__name__:
            return result  # a view, or memory without contents
        moved = sum(map(_bytes, tree_leaves((args, kwargs, result))))
        counter = flop_registry.get(func._overloadpacket)
        flops = counter(*args, **kwargs, out_val=result) if counter else 0
        seconds = max(moved / self.ceilings.bytes_per_second, flops / self.ceilings.flops_per_second)
        self.flops += flops
        self.bytes += moved
        self.launches += 1
        self.seconds += seconds
        self.product_seconds += seconds if flops else 0
        return result


def _bytes(value: Any) -> int:
    """Count the bytes behind a tensor; elements that stand for several count once."""
    return min(value.nbytes, value.untyped_storage().nbytes()) if isinstance(value, Tensor) else 0


def counted(work: Callable[[], Any], ceilings: Ceilings) -> Roofline:
    """Count one call of work on the meta device."""
    with Roofline(ceilings) as roofline:
        work()
    return roofline


def passes(network: NetworkConfig, images: int, ceilings: Ceilings) -> Iterator[tuple[str, Roofline]]:
    """Count forward and backward pass in bfloat16, of the plain form and of ours; then an evaluation of each."""
    with torch.device("meta"):
        ours, plain = build_network(network), ReferencePrecond(network)
        ours.compute_dtype = plain.compute_dtype = torch.bfloat16
        x = torch.empty(images, network.img_channels, *network.size)
        sigma, labels = torch.empty(images), torch.empty(images, network.label_dim) if network.label_dim else None
    ours.to(memory_format=ours.unet.memory_format)  # type: ignore[call-overload]  # unknown to torch's stubs
    loss = EDM2Loss()
    yield "step, plain", counted(lambda: reference_loss(plain, x, labels, sigma, x).sum().backward(), ceilings)
    yield "step, ours", counted(lambda: loss(ours, x, labels, sigma=sigma, noise=x).sum().backward(), ceilings)
    with torch.no_grad():
        yield "evaluation, plain", counted(lambda: plain.eval()(x, sigma, labels), ceilings)
        folded = fold(ours, torch.bfloat16)
        yield "evaluation, ours", counted(lambda: folded(x, sigma, labels), ceilings)


def speed(scale: Scale, ceilings: Ceilings) -> Iterator[Finding]:
    """Expect training steps and evaluations: of `scale.batch` images by micro-batches, and of each sampling batch."""
    for preset in scale.presets:
        network = _workload(scale, preset, 1).network
        updates = sum(UPDATE_BYTES.values()) * count_parameters(network) / ceilings.bytes_per_second
        for name, found in passes(network, scale.micro_batch, ceilings):
            if name.startswith("step"):
                rounds = scale.batch // scale.micro_batch
                yield _expected(f"{preset}, {name}", found, ceilings, scale.batch, rounds, updates)
        for batch in scale.sample_batches:
            for name, found in passes(network, batch, ceilings):
                if name.startswith("evaluation"):
                    yield _expected(f"{preset}, {name} of {batch}", found, ceilings, batch)


def _expected(part: str, found: Roofline, ceilings: Ceilings, images: int, rounds: int = 1, more: float = 0) -> Finding:
    eager, fused = rounds * found.seconds + more, rounds * found.product_seconds + more
    percent = 100 * rounds * found.flops / ceilings.flops_per_second
    return row(
        part, TFLOP=rounds * found.flops / 1e12, GB=rounds * found.bytes / 1e9, launches=rounds * found.launches,
        **{
            "eager ms": 1e3 * eager, "images/s": images / eager, "% of the bf16 ceiling": percent / eager,
            "all else fused ms": 1e3 * fused, "images/s then": images / fused, "% then": percent / fused,
            "host ms": 1e3 * HOST * rounds * found.launches,
        },
    )  # fmt: skip


def updates(scale: Scale, ceilings: Ceilings) -> Iterator[Finding]:
    """Expect the passes over all weights of the first network, as made and at the least bytes."""
    parameters = count_parameters(_workload(scale, scale.presets[0], 1).network)
    least = {"forced normalization": 8, "gradients cleaned": 8, "Adam": 28, "two averages": 20}
    for name, size in UPDATE_BYTES.items():
        made, fused = (1e3 * bytes * parameters / ceilings.bytes_per_second for bytes in (size, least[name]))
        yield row(f"{scale.presets[0]}, {name}", ms=made, ms_at_the_least_bytes=fused)


def memory(scale: Scale) -> Iterator[Finding]:
    """Expect the memory of one step of the largest network on one GPU (`edm2 plan` counts so)."""
    for recompute in (False, True):
        for batch in scale.large_batches:
            workload = _workload(scale, scale.large, 2 * batch)
            estimate = estimate_memory(replace(workload.config, device="cuda", micro_batch=batch, recompute=recompute))
            yield row(
                f"{scale.large}, {batch} images{', recomputed' if recompute else ''}",
                between_steps_GB=estimate.persistent / 1e9, gradients_GB=estimate.gradients / 1e9,
                activations_GB=estimate.activations / 1e9, with_spare_GB=estimate.total / 1e9,
                TFLOP_per_image=6 * count_flops(workload.network) / 1e12,
            )  # fmt: skip


def _workload(scale: Scale, preset: str, batch: int) -> Workload:
    settings = Settings(preset=preset, batch=batch, precision="bf16", device="cpu", channels=scale.channels)
    return Workload(settings)


def expectations(scale: Scale, ceilings: Ceilings) -> list[str]:
    """Return Markdown of everything that is expected."""
    copied, product = ceilings.bytes_per_second / 1e12, ceilings.flops_per_second / 1e12
    lines = [f"Ceilings: a copy of {copied:.3g} TB/s, a bfloat16 product of {product:.3g} TFLOP/s.", ""]
    lines += section_markdown("Expected steps and evaluations", list(speed(scale, ceilings)))
    lines += section_markdown("Expected passes over all weights", list(updates(scale, ceilings)))
    return lines + section_markdown("Expected memory", list(memory(scale)))


@click.command()
@click.option("--results", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="With measured ceilings.")
def main(results: Path | None) -> None:
    """Print what the device suite should find on an H200, by nominal ceilings or by measured ones."""
    found = None if results is None else measured_ceilings(json.loads(results.read_text())["machine"])
    click.echo("\n".join(expectations(FULL, found or H200)))


if __name__ == "__main__":
    main()
