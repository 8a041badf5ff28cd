"""The device, its driver, the versions, and the two ceilings that everything else is measured by."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from edm2.tools.bench.device.findings import Finding, Parts, row
from edm2.tools.bench.device.setup import Ceilings, Setup
from edm2.tools.bench.measuring import machine, matrix_peak
from edm2.tools.bench.timing import Clock

PACKAGES = ("triton", "numpy", "scipy", "safetensors", "pillow", "click")


def parts(setup: Setup) -> Parts:
    """Measure the ceilings, then describe the machine."""
    return {"ceilings": lambda: ceilings(setup), "machine": lambda: description(setup)}


def ceilings(setup: Setup) -> Iterator[Finding]:
    """Measure a large copy and large products of matrices."""
    copied = copy_rate(setup.clock(), setup.scale.copy_bytes)
    product = matrix_peak(setup.clock(), torch.bfloat16, setup.scale.matrix_size)
    half = matrix_peak(setup.clock(), torch.float16, setup.scale.matrix_size)
    yield row("copy, bytes read and written", per_second=copied)
    yield row(product.name, per_second=product.flops_per_second)
    yield row(half.name, per_second=half.flops_per_second)


def measured_ceilings(findings: list[Finding]) -> Ceilings | None:
    """Ceilings in the findings of this section; None where they could not be measured."""
    rates = [finding["values"]["per second"] for finding in findings if "per second" in finding.get("values", {})]
    return Ceilings(*rates[:2]) if len(rates) >= 2 else None


def copy_rate(clock: Clock, size: int) -> float:
    """Measure the bytes read and written per second in a copy of a large tensor, in the fastest repeat."""
    source = torch.ones(size, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    return 2 * size / clock.time(lambda: target.copy_(source)).low


def description(setup: Setup) -> Iterator[Finding]:
    """Describe the machine, the driver and the versions."""
    found = machine(torch.device(setup.device)) | {"driver": driver(), "kernel": platform.release()}
    if setup.on_cuda:
        found |= {"cudnn": torch.backends.cudnn.version(), "capability": torch.cuda.get_device_capability()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    for name, value in found.items():
        yield row(name, value=str(value))


def driver() -> str:
    """Return the first line that the kernel says about NVIDIA's driver."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text(encoding="utf-8").splitlines()[0] if path.exists() else "unknown"
