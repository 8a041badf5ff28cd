"""What all sections of the device suite work with: scale, device, ceilings, clock, and counts of launches."""

import gc
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from edm2.tools.bench.device.findings import Finding, failed, row
from edm2.tools.bench.timing import Clock, Timing, Work, peak_memory
from edm2.tools.bench.workload import Settings, Workload
from edm2.training.config import TrainingConfig


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that the suite measures."""

    name: str
    presets: tuple[str, ...]
    """Networks of training steps and evaluations, the most important one first."""
    channels: int | None
    """Base width in place of the presets'."""
    batch: int
    """Images per training step."""
    micro_batch: int
    """Images per forward pass."""
    sample_batches: tuple[int, ...]
    """Images per evaluation; the first one for samplers."""
    steps: tuple[int, ...]
    """Steps of Heun's method: 2 N - 1 evaluations."""
    large: str
    """Network whose memory is the question."""
    large_batches: tuple[int, ...]
    """Images per forward pass that are tried with it."""
    repeats: int
    copy_bytes: int
    """Bytes of the tensor that is copied for the ceiling."""
    matrix_size: int
    run_preset: str
    """Preset of the real run."""
    run_channels: int
    run_micro_batch: int
    """Images per forward pass of the run; too few leave a large GPU waiting for the host."""
    backend: str
    """Compiler behind torch.compile."""


FULL = Scale(
    name="full", presets=("edm2-img512-s", "edm2-img512-xs"), channels=None, batch=256, micro_batch=128,
    sample_batches=(32, 4), steps=(1, 3, 32), large="edm2-img512-xxl", large_batches=(16, 64), repeats=5,
    copy_bytes=4 << 30, matrix_size=8192, run_preset="edm2-small-32", run_channels=96, run_micro_batch=256,
    backend="inductor",
)  # fmt: skip
TINY = Scale(
    name="tiny", presets=("digits8",), channels=8, batch=8, micro_batch=4, sample_batches=(2, 1), steps=(1, 2),
    large="digits8", large_batches=(2,), repeats=1, copy_bytes=1 << 20, matrix_size=64, run_preset="digits8",
    run_channels=8, run_micro_batch=64, backend="aot_eager",
)  # fmt: skip
SCALES = {scale.name: scale for scale in (FULL, TINY)}


SECONDS_OF_A_TABLE = 15
"""Seconds that the repeats of works that are compared may take together; each is measured once at least."""


class Ceilings(NamedTuple):
    """The most that the device can do, as measured."""

    bytes_per_second: float
    """Bytes read and written in a large copy."""
    flops_per_second: float
    """Operations of a large matrix product in bfloat16; a multiplication and an addition are two."""


H200 = Ceilings(4.8e12, 989e12)
"""Nominal ceilings of an NVIDIA H200, dense bfloat16."""


@dataclass(frozen=True)
class Setup:
    """A section's surroundings, which come to its process as JSON."""

    scale: Scale
    device: str
    seconds: float
    """Time until the section is stopped."""
    out: str
    """Folder for files."""
    data: str | None
    """Dataset of the real run."""
    ceilings: Ceilings = H200

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` is the inverse."""
        return {**vars(self), "scale": self.scale.name}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Setup":
        """Build from `to_json`'s values."""
        return cls(**{**values, "scale": SCALES[values["scale"]], "ceilings": Ceilings(*values["ceilings"])})

    @property
    def on_cuda(self) -> bool:
        """True on an NVIDIA GPU."""
        return self.device.startswith("cuda")

    def clock(self) -> Clock:
        """Clock of this device."""
        return Clock(torch.device(self.device), self.scale.repeats, warmup=1)

    def workload(self, preset: str, batch: int, precision: str = "bf16") -> Workload:
        """Network and inputs of a preset."""
        return Workload(
            Settings(preset=preset, batch=batch, precision=precision, device=self.device, channels=self.scale.channels)
        )

    def config(self, workload: Workload, **changes: Any) -> TrainingConfig:
        """Run of a workload by micro-batches."""
        return replace(workload.config, **{"micro_batch": self.scale.micro_batch} | changes)

    def compiled(self, function: Any, **options: Any) -> Any:
        """Compile for static shapes."""
        return torch.compile(function, dynamic=False, backend=self.scale.backend, **options)

    def by_turns(
        self, works: Mapping[str, Work], *, images: float = 0, flops: float = 0, bytes: float = 0
    ) -> Iterator[Finding]:
        """Time works that take turns, each beside the first one; one that fails at its first call drops out.

        Args:
            works: Works by name.
            images: Images that one call makes or trains on.
            flops: Operations of one call, to be compared with the ceiling.
            bytes: Bytes that one call must move, likewise.
        """
        first: dict[str, float] = {}
        for name, work in works.items():
            start = time.perf_counter()
            try:
                work()
                self.wait()
            except Exception as error:  # whatever a device or a compiler may raise
                yield failed(name, error)
            else:
                first[name] = time.perf_counter() - start
        if not first:
            return
        start = time.perf_counter()
        for name in first:
            works[name]()
        self.wait()
        repeats = max(min(self.scale.repeats, int(SECONDS_OF_A_TABLE / (time.perf_counter() - start))), 1)
        clock = Clock(torch.device(self.device), repeats, warmup=0)
        durations = clock.by_turns({name: works[name] for name in first})
        base = next(iter(first))
        for name, rounds in durations.items():
            timing = Timing.of(rounds)
            ratio = Timing.of(durations[base]).seconds / timing.seconds
            values: dict[str, Any] = {"ms": timing.seconds * 1e3, "ms, fastest": timing.low * 1e3}
            if images:
                values["images/s"] = images / timing.seconds
            if flops:
                values["% of the bf16 ceiling"] = 100 * flops / timing.seconds / self.ceilings.flops_per_second
            if bytes:
                values["% of the copy ceiling"] = 100 * bytes / timing.seconds / self.ceilings.bytes_per_second
            values |= {
                "peak GB": peak_memory(works[name], torch.device(self.device)) / 1e9 if self.on_cuda else None,
                "first call s": first[name],
                f"times as fast as {base}": ratio,
            }
            yield {"part": name, "values": values}

    def wait(self) -> None:
        """Wait for the device."""
        if self.on_cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give memory of the last part back, and forget compiled functions."""
        torch._dynamo.reset()
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()


WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def count_launches(part: str, work: Work, setup: Setup) -> Finding:
    """Count what the host asks of the device in one call of warm work, and how often it waits."""
    work()
    setup.wait()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.on_cuda else [])]
    with warnings.catch_warnings(record=True) as warned, profile(activities=activities) as profiler:
        warnings.simplefilter("always")
        if setup.on_cuda:
            torch.cuda.set_sync_debug_mode("warn")
        work()
        if setup.on_cuda:
            torch.cuda.set_sync_debug_mode("default")
    counts = {event.key: event.count for event in profiler.key_averages()}
    return row(
        part,
        operations=sum(count for name, count in counts.items() if name.startswith("aten::")),
        launches=sum(counts.get(name, 0) for name in LAUNCHES),
        graph_launches=counts.get("cudaGraphLaunch", 0),
        waits=sum(counts.get(name, 0) for name in WAITS),
        waits_that_torch_warns_of=sum("synchroniz" in str(warning.message) for warning in warned),
        copies_to_the_host=sum(count for name, count in counts.items() if name.startswith("Memcpy DtoH")),
    )
