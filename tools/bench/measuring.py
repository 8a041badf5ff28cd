"""A benchmark from its settings to its report."""

import os
import platform
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edm2 import __version__
from edm2.networks import NetworkConfig, build_network
from edm2.planning.costs import device_memory
from edm2.tools.bench.karras import check_karras_unet
from edm2.tools.bench.report import Finding, Peak, Report
from edm2.tools.bench.rivals import RIVALS
from edm2.tools.bench.sections import SECTIONS, Bench
from edm2.tools.bench.timing import Clock
from edm2.tools.bench.workload import Settings, Workload
from edm2.training.config import DTYPES
from edm2.training.data.vae import load_vae


def measure(
    settings: Settings,
    on_start: Callable[[Report], object] = id,
    on_finding: Callable[[Finding], object] = id,
) -> Report:
    """Measure what `settings` ask for.

    Args:
        settings: Names of sections and rivals are keys of `SECTIONS` and `RIVALS`.
        on_start: Called with the report when it has the peaks and no findings.
        on_finding: Called with each finding as soon as it is there.

    Raises:
        ValueError: settings that do not fit together.
        MissingRival: an implementation to compare with is not installed.
        VAEError: the VAE cannot be loaded.
    """
    workload = Workload(settings)
    if "karras-unet" in settings.against:
        check_karras_unet(workload.network)
    if "vae" in settings.sections and settings.vae is not None and workload.draws_latents:
        load_vae(settings.vae, workload.device)  # kept until it is used; fails now rather than in an hour
    if workload.device.type == "cuda":
        torch.cuda.set_device(workload.device)  # the clock waits for the current device
    clock, dtype = Clock(workload.device, settings.repeats, settings.warmup), DTYPES[settings.precision]
    report = Report(
        machine=machine(workload.device),
        settings=asdict(settings) | {"clock": clock.kind},
        network={
            **workload.network.to_json(),
            "parameters": workload.parameters,
            "flops_per_image": workload.evaluation_flops / settings.batch,
            "bytes_kept_in_training": 4 * workload.parameters * (3 + workload.config.num_averages),
        },
        peaks=[
            matrix_peak(clock, dtype, settings.matrix_size),
            convolution_peak(clock, dtype, workload.network, settings.batch),
        ],
    )
    on_start(report)
    bench = Bench(workload, clock, report.peaks)
    sections = [section for name, section in SECTIONS.items() if name in settings.sections]
    for work in [*sections, *(RIVALS[name] for name in settings.against)]:
        for finding in work(bench):
            report.findings.append(finding)
            on_finding(finding)
    return report


# ----------------------------------------------------------------------------------------------------------------------
# Peaks of the device


def matrix_peak(clock: Clock, dtype: torch.dtype, size: int) -> Peak:
    """Measure FLOP/s of a product of two square matrices, in the fastest repeat."""
    a, b = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
    seconds = clock.time(lambda: a @ b).low
    return Peak(f"product of {size}x{size} matrices, {_name(dtype)}", 2 * size**3 / seconds)


@torch.no_grad()
def convolution_peak(clock: Clock, dtype: torch.dtype, network: NetworkConfig, batch: int) -> Peak:
    """Measure FLOP/s of the convolution with most operations, alone: the faster layout, its fastest repeat."""
    flops, x_shape, w_shape = max(convolutions(network, batch))
    x, w = (torch.randn(shape, device=clock.device).to(dtype) for shape in (x_shape, w_shape))

    def seconds(layout: torch.memory_format) -> float:
        x_laid, w_laid = x.to(memory_format=layout), w.to(memory_format=layout)
        return clock.time(lambda: F.conv2d(x_laid, w_laid, padding=w_shape[-1] // 2)).low

    fastest = min(seconds(torch.contiguous_format), seconds(torch.channels_last))
    name = f"{w_shape[2]}x{w_shape[3]} convolution of {' x '.join(map(str, x_shape))} to {w_shape[0]} channels"
    return Peak(f"{name}, {_name(dtype)}", flops / fastest)


def convolutions(network: NetworkConfig, batch: int) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """List operations, shape of the input and shape of the weight of each convolution on `batch` images."""
    found: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, w = inputs[0], layer.weight
        if w.ndim == 4:
            pixels = batch * output.shape[2] * output.shape[3]
            found.append((2 * pixels * w.numel(), (batch, *x.shape[1:]), tuple(w.shape)))

    with torch.device("meta"):
        net = build_network(network).eval()
        for layer in net.modules():
            if isinstance(getattr(layer, "weight", None), Tensor):
                layer.register_forward_hook(note)
        net(torch.empty(1, network.img_channels, *network.size), torch.empty(1))
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ----------------------------------------------------------------------------------------------------------------------
# Machine


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the versions; keys are those of the JSON."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "memory": device_memory(str(device)),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "edm2": __version__,
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # on Linux
    name = re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    return name[1].strip() if name else platform.processor() or platform.machine()
