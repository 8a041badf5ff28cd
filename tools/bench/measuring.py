"""A benchmark from its settings to its report."""

import os
import platform
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from edm2 import __version__
from edm2.planning.costs import device_memory
from edm2.tools.bench.clock import Clock
from edm2.tools.bench.peak import convolution_peak, matrix_peak
from edm2.tools.bench.results import Finding, Report
from edm2.tools.bench.rivals import RIVALS, check_rivals
from edm2.tools.bench.sections import SECTIONS, Bench
from edm2.tools.bench.workload import Settings, Workload
from edm2.training.config import DTYPES
from edm2.training.data.vae import load_vae

Tell = Callable[[Finding], object]


def measure(settings: Settings, on_start: Callable[[Report], object] = id, on_finding: Tell = id) -> Report:
    """Measure all that `settings` ask for.

    Args:
        settings: What.
        on_start: Told the report when the peaks are in it, and nothing else.
        on_finding: Told each finding as soon as it is there.

    Raises:
        ValueError: an unknown name, or settings that do not fit together.
        MissingRival: someone to compare with is not installed.
        VAEError: the VAE cannot be had.
    """
    check_names(settings)
    workload = Workload(settings)
    check_rivals(settings.against, workload.network)
    if "vae" in settings.sections and settings.vae is not None and workload.draws_latents:
        load_vae(settings.vae, workload.device)  # kept until it is used; fails now rather than in an hour
    if workload.device.type == "cuda":
        torch.cuda.set_device(workload.device)  # events are those of the current device
    clock = Clock(workload.device, settings.repeats, settings.warmup)
    report = described(workload, clock)
    dtype = DTYPES[settings.precision]
    report.peaks.append(matrix_peak(clock, dtype, settings.matrix_size))
    report.peaks.append(convolution_peak(clock, dtype, workload.network, settings.batch))
    on_start(report)
    bench = Bench(workload, clock, report.peaks)
    works = [work for name, work in SECTIONS.items() if name in settings.sections]
    for work in [*works, *(RIVALS[name] for name in settings.against)]:
        for finding in work(bench):
            report.findings.append(finding)
            on_finding(finding)
    return report


def check_names(settings: Settings) -> None:
    """Raises ValueError if there is nothing to measure, or something of an unknown name."""
    for option, names, known in (("only", settings.sections, SECTIONS), ("against", settings.against, RIVALS)):
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"--{option} {unknown[0]} is unknown; there are {', '.join(known)}")
    if not settings.sections:
        raise ValueError(f"nothing to measure; there are {', '.join(SECTIONS)}")
    if settings.against and not {"training", "sampling"} & set(settings.sections):
        raise ValueError("--against compares training and sampling; --only must name one of them")


def described(workload: Workload, clock: Clock) -> Report:
    """A report with nothing in it yet."""
    settings = workload.settings
    return Report(
        machine=machine(workload.device),
        settings={name: getattr(settings, name) for name in Settings.__dataclass_fields__} | {"clock": clock.kind},
        network={
            **workload.network.to_json(),
            "parameters": workload.parameters,
            "flops_per_image": workload.evaluation_flops / settings.batch,
            "bytes_kept_in_training": 4 * workload.parameters * (3 + workload.config.num_averages),
        },
    )


def machine(device: torch.device) -> dict[str, Any]:
    """Where this is."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "memory": device_memory(str(device)),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "edm2": __version__,
    }


def processor_name() -> str:
    """As the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
