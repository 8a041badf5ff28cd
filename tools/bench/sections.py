"""Measurements of our own work: training, sampling, decoding and averaging; each section yields its findings."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edm2.networks import force_weight_normalization_
from edm2.post_hoc_ema import PowerFunctionEMA, find_snapshots, reconstruct_files, snapshot_name, write_snapshot
from edm2.sampling.guidance import guided, without_labels
from edm2.sampling.samplers.heun import Denoiser, sample_heun
from edm2.tools.bench.report import Comparison, Finding, Measurement, Peak, Skipped
from edm2.tools.bench.timing import Clock, Timing, Work, peak_memory
from edm2.tools.bench.workload import Inputs, Workload, step_loss
from edm2.training.data.batches import BatchStream
from edm2.training.data.vae import load_vae
from edm2.training.step import TrainStep

GUIDANCE = 1.5
"""Guidance weight; any but 0 and 1 costs the same."""

HEUN_EVALUATIONS = 63
"""Evaluations of the paper's sampler (32 steps), to which images per second refer however many steps are measured."""

SNAPSHOT_TIMES, SNAPSHOT_SIGMA_RELS = (1 << 20, 2 << 20, 3 << 20, 4 << 20), (0.05, 0.10)
"""Images seen and EMA lengths of the snapshots from which an average is reconstructed."""


@dataclass(frozen=True)
class Bench:
    """A workload with the clock that times it, and the peaks of the device."""

    workload: Workload
    clock: Clock
    peaks: Sequence[Peak]

    def measured(
        self, section: str, part: str, work: Work, before: Work | None = None, *,
        images: float = 0, flops: float = 0, memory: bool = False, note: str = "",
    ) -> Measurement:  # fmt: skip
        """Measure one work of ours: see `Measurement`. Memory is not counted if the work is compiled."""
        timing = self.clock.time(work, before)
        shares = tuple(flops / timing.seconds / peak.flops_per_second for peak in self.peaks if flops)
        counted = memory and (self.clock.device.type == "cuda" or not self.workload.settings.compile)
        needed = peak_memory(work, self.clock.device) if counted else None
        return Measurement(section, part, timing, images, flops, shares, needed, note)

    def compared(self, section: str, part: str, rival: str, ours: Work, theirs: Work, what: str) -> Comparison:
        """Time two works by turns: see `Comparison`."""
        settings = self.workload.settings
        our, their = self.clock.by_turns({"ours": ours, "theirs": theirs}).values()
        ratios = tuple(b.seconds / a.seconds for a, b in zip(our, their, strict=True))
        precisions = settings.precision, settings.against_precision
        return Comparison(section, part, rival, precisions, what, Timing.of(our), Timing.of(their), ratios)


def training(bench: Bench) -> Iterator[Finding]:
    """Measure a whole step, and its parts one by one."""
    workload = bench.workload
    step, inputs = TrainStep(workload.config, workload.net()), workload.inputs()
    batches = BatchStream(workload.config, workload.dataset, step.random).steps(start=0)
    batch, flops = workload.settings.batch, workload.training_flops
    losses: list[Tensor] = []

    def forward() -> None:
        losses[:] = [step_loss(step, inputs)]

    def forward_from_nothing() -> None:
        step.optimizer.zero_grad(set_to_none=True)
        forward()

    def backward() -> None:
        losses.pop().backward()

    yield bench.measured(
        "training", "whole step", lambda: step(next(batches)), images=batch, flops=flops, memory=True
    )  # fmt: skip
    yield bench.measured("training", "data", lambda: next(batches), note="random images in memory, encoded")
    yield bench.measured("training", "forward", forward, losses.clear, flops=flops / 3)
    yield bench.measured("training", "backward", backward, forward_from_nothing, flops=2 * flops / 3)
    yield bench.measured("training", "forced weight normalization", lambda: force_weight_normalization_(step.net))
    yield bench.measured("training", "gradients' norm", lambda: step.strategy.clean_gradients_(step.net))
    yield bench.measured("training", "Adam", step.optimizer.step)
    yield bench.measured("training", "averages", lambda: step.ema.update(step.ema.images_seen + batch))


def sampling(bench: Bench) -> Iterator[Finding]:
    """Measure an evaluation, and Heun's method with and without guidance."""
    workload, steps = bench.workload, bench.workload.settings.steps
    net, inputs, flops = workload.inference_form(), workload.inputs(), workload.evaluation_flops
    evaluations = 2 * steps - 1
    images = workload.settings.batch * evaluations / HEUN_EVALUATIONS
    note = f"{evaluations} evaluations; images per second as of {HEUN_EVALUATIONS}"

    yield bench.measured("sampling", "evaluation", evaluation(net, inputs), flops=flops, memory=True)
    flops *= evaluations
    yield bench.measured("sampling", "Heun", heun(net, inputs, steps), images=images, flops=flops, note=note)
    if inputs.labels is not None:  # without classes there is nothing to guide by
        work = heun(net, inputs, steps, is_guided=True)
        yield bench.measured("sampling", "Heun with guidance", work, images=images, flops=2 * flops, note=note)


def evaluation(net: Denoiser, inputs: Inputs) -> Work:
    """Return work that denoises a batch."""
    return torch.no_grad()(lambda: net(inputs.images, inputs.sigma, inputs.labels))


def heun(net: Denoiser, inputs: Inputs, steps: int, is_guided: bool = False) -> Work:
    """Return work that draws a batch, with classifier-free guidance or without."""
    denoiser = guided(net, without_labels(net), GUIDANCE) if is_guided else net
    return lambda: sample_heun(denoiser, inputs.noise, inputs.labels, num_steps=steps)


def vae(bench: Bench) -> Iterator[Finding]:
    """Measure decoding one batch of latents, at most eight at a time as everywhere in this project."""
    workload, name = bench.workload, bench.workload.settings.vae
    if not workload.draws_latents:
        yield Skipped("vae", f"networks of preset {workload.settings.preset} draw pixels, which need none")
        return
    try:
        decoder: Any = sd_vae_shape(workload.device) if name is None else load_vae(name, workload.device)
    except ImportError:
        yield Skipped("vae", "diffusers is not installed: pip install diffusers")
        return
    latents = workload.inputs().noise[:8]
    decode = torch.no_grad()(lambda: decoder.decode(latents))
    note = f"{len(latents)} at a time in float32; " + (name or "the usual SD-VAE's shape with random weights")
    yield bench.measured("vae", "decode", decode, images=len(latents), memory=True, note=note)


def sd_vae_shape(device: torch.device) -> nn.Module:
    """Make an untrained autoencoder as large as the paper's: 84 million parameters, factor 8."""
    from diffusers import AutoencoderKL  # takes seconds

    with torch.random.fork_rng(devices=[]):
        net = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=4,
        )
    return net.to(device).eval().requires_grad_(False)


def ema(bench: Bench) -> Iterator[Finding]:
    """Measure taking in the weights after a step, and making another average afterwards."""
    net, clock = bench.workload.net(), itertools.count(1)
    tracker = PowerFunctionEMA(net, SNAPSHOT_SIGMA_RELS)
    yield bench.measured("ema", "update of two averages", lambda: tracker.update(next(clock)))
    count = len(SNAPSHOT_TIMES) * len(SNAPSHOT_SIGMA_RELS)
    with tempfile.TemporaryDirectory() as folder:
        needed = bench.workload.parameters * (2 * count + 4)
        if needed > 0.9 * shutil.disk_usage(folder).free:
            yield Skipped("ema", f"reconstruction needs {needed / 1e9:.1f} GB in {tempfile.gettempdir()}; set TMPDIR")
            return
        for images_seen, sigma_rel in itertools.product(SNAPSHOT_TIMES, SNAPSHOT_SIGMA_RELS):
            metadata = {"images_seen": images_seen, "sigma_rel": sigma_rel}
            path = Path(folder, snapshot_name(images_seen, sigma_rel))
            write_snapshot(path, net.state_dict(), metadata, torch.float16)
        snapshots, made = find_snapshots(folder), Path(folder, "made.safetensors")
        note = f"from {count} snapshots in float16 to a file in float32"
        yield bench.measured(
            "ema", "reconstruction of one average",
            lambda: reconstruct_files(snapshots, [0.075], [made], [{}]), note=note,
        )  # fmt: skip


SECTIONS = {"training": training, "sampling": sampling, "vae": vae, "ema": ema}
"""Sections by name, in the order in which they are measured."""
