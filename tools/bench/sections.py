"""What a benchmark measures of ours: training, sampling, decoding, averaging; a generator of findings each."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2.networks import Precond, fold, force_weight_normalization_
from edm2.post_hoc_ema import PowerFunctionEMA, find_snapshots, reconstruct_files, snapshot_name, write_snapshot
from edm2.sampling.guidance import guided, without_labels
from edm2.sampling.samplers.heun import Denoiser, sample_heun
from edm2.tools.bench.clock import Clock, Work
from edm2.tools.bench.memory import peak_memory
from edm2.tools.bench.results import Finding, Measurement, Peak, Skipped
from edm2.tools.bench.workload import Inputs, Workload
from edm2.training.config import DTYPES
from edm2.training.data.batches import BatchStream
from edm2.training.data.vae import load_vae
from edm2.training.step import TrainStep

GUIDANCE = 1.5
"""Guidance weight; any but 0 and 1 costs the same."""

HEUN_EVALUATIONS = 63
"""Of the paper's sampler (32 steps), to which images per second refer however many steps are measured."""

SNAPSHOT_TIMES, SNAPSHOT_SIGMA_RELS = (1 << 20, 2 << 20, 3 << 20, 4 << 20), (0.05, 0.10)
"""From these an average is reconstructed."""


class Bench:
    """Measures works of one workload.

    Args:
        workload: What to work on.
        clock: How to time it.
        peaks: What the device can do at most.
    """

    def __init__(self, workload: Workload, clock: Clock, peaks: Sequence[Peak]) -> None:
        self.workload = workload
        self.clock = clock
        self.peaks = tuple(peaks)

    def measured(
        self,
        section: str,
        part: str,
        work: Work,
        before: Work | None = None,
        *,
        images: float = 0,
        flops: float = 0,
        memory: bool = False,
        note: str = "",
    ) -> Measurement:
        """One thing: see `Measurement` for the rest."""
        timing = self.clock.time(work, before)
        peaks = [peak.flops_per_second for peak in self.peaks if flops]
        shares = tuple(flops / timing.seconds / peak for peak in peaks)
        needed = peak_memory(work, self.clock.device, self.workload.settings.compile) if memory else None
        return Measurement(section, part, timing, images, flops, shares, needed, note)


def training(bench: Bench) -> Iterator[Finding]:
    """A whole step, and its parts one by one."""
    workload, step = bench.workload, bench.workload.train_step()
    batch, flops = workload.settings.batch, workload.training_flops
    feed = BatchStream(workload.config, workload.dataset, step.random)
    batches = feed.steps(start=0)

    def whole_step() -> None:
        step(next(batches))

    yield bench.measured("training", "whole step", whole_step, images=batch, flops=flops, memory=True)
    yield bench.measured("training", "data", lambda: next(batches), note="random images in memory, encoded")
    inputs = workload.inputs()
    losses: list[Tensor] = []

    def forward() -> None:
        loss = step.loss(step.denoiser, inputs.images, inputs.labels, sigma=inputs.sigma, noise=inputs.noise)
        losses[:] = [loss.sum() / batch]

    def forward_from_nothing() -> None:
        step.optimizer.zero_grad(set_to_none=True)
        forward()

    yield bench.measured("training", "forward", forward, lambda: losses.clear(), flops=flops / 3)
    yield bench.measured(
        "training", "backward", lambda: losses.pop().backward(), forward_from_nothing, flops=2 * flops / 3
    )
    net, clock = step.net, itertools.count(step.images_seen + batch, batch)
    yield bench.measured("training", "forced weight normalization", lambda: force_weight_normalization_(net))
    yield bench.measured("training", "gradients' norm", lambda: step.strategy.clean_gradients_(net))
    yield bench.measured("training", "Adam", step.optimizer.step)
    yield bench.measured("training", "averages", lambda: step.ema.update(next(clock)))


def sampling(bench: Bench) -> Iterator[Finding]:
    """An evaluation, and Heun's method with and without guidance."""
    workload, settings = bench.workload, bench.workload.settings
    net = inference_form(workload)
    inputs, flops = workload.inputs(), workload.evaluation_flops
    evaluations = 2 * settings.steps - 1
    images = settings.batch * evaluations / HEUN_EVALUATIONS
    counted = f"{evaluations} evaluations; images per second as of {HEUN_EVALUATIONS}"

    yield bench.measured("sampling", "evaluation", evaluation(net, inputs), flops=flops, memory=True)
    draw = heun(net, inputs.noise, inputs.labels, settings.steps)
    yield bench.measured("sampling", "Heun", draw, images=images, flops=evaluations * flops, note=counted)
    if workload.network.label_dim:  # without classes there is nothing to guide by
        draw = heun(guided(net, without_labels(net), GUIDANCE), inputs.noise, inputs.labels, settings.steps)
        flops = 2 * evaluations * flops
        yield bench.measured("sampling", "Heun with guidance", draw, images=images, flops=flops, note=counted)


def passes(step: TrainStep, inputs: Inputs) -> Work:
    """Forced weight normalization, loss and gradients of a batch, to be called."""
    images, labels, sigma, noise = inputs

    def work() -> None:
        step.optimizer.zero_grad(set_to_none=True)
        force_weight_normalization_(step.net)
        loss = step.loss(step.denoiser, images, labels, sigma=sigma, noise=noise)
        (loss.sum() / len(images)).backward()

    return work


def evaluation(net: Denoiser, inputs: Inputs) -> Work:
    """Denoising a batch, to be called."""

    @torch.no_grad()
    def work() -> None:
        net(inputs.images, inputs.sigma, inputs.labels)

    return work


def inference_form(workload: Workload) -> Denoiser:
    """Our network as it is sampled from."""
    net = fold(workload.net(), DTYPES[workload.settings.precision])
    return torch.compile(net) if workload.settings.compile else net


def heun(denoise: Denoiser, noise: Tensor, labels: Tensor | None, steps: int) -> Work:
    """Sampling, to be called."""
    return lambda: sample_heun(denoise, noise, labels, num_steps=steps)


def vae(bench: Bench) -> Iterator[Finding]:
    """Decoding one batch of latents, at most eight at a time as everywhere here."""
    workload, name = bench.workload, bench.workload.settings.vae
    if not workload.draws_latents:
        yield Skipped("vae", f"networks of preset {workload.settings.preset} draw pixels, which need none")
        return
    try:
        decoder = sd_vae_shape(workload.device) if name is None else load_vae(name, workload.device)
    except ImportError:
        yield Skipped("vae", "diffusers is not installed: pip install diffusers")
        return
    latents = workload.inputs().noise[:8]

    @torch.no_grad()
    def decode() -> None:
        decoder.decode(latents)

    kind = "the usual SD-VAE's shape with random weights" if name is None else name
    note = f"{len(latents)} at a time in float32; {kind}"
    yield bench.measured("vae", "decode", decode, images=len(latents), memory=True, note=note)


def sd_vae_shape(device: torch.device) -> Any:
    """An autoencoder as large as the one that the paper decodes with, untrained: 84 million parameters, factor 8."""
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
    """Taking in the weights after a step, and making another average afterwards."""
    net = bench.workload.net()
    yield bench.measured("ema", "update of two averages", tracking(net))
    count = len(SNAPSHOT_TIMES) * len(SNAPSHOT_SIGMA_RELS)
    with tempfile.TemporaryDirectory() as folder:
        needed = bench.workload.parameters * (2 * count + 4)
        if needed > 0.9 * shutil.disk_usage(folder).free:
            yield Skipped("ema", f"reconstruction needs {needed / 1e9:.1f} GB in {tempfile.gettempdir()}; set TMPDIR")
            return
        work = reconstruction(net, Path(folder))
        note = f"from {count} snapshots in float16 to a file in float32"
        yield bench.measured("ema", "reconstruction of one average", work, note=note)


def tracking(net: Precond) -> Work:
    """One update of two averages, to be called."""
    tracker, clock = PowerFunctionEMA(net, SNAPSHOT_SIGMA_RELS), itertools.count(1)
    return lambda: tracker.update(next(clock))


def reconstruction(net: Precond, folder: Path) -> Work:
    """One average from snapshots, which are written now, to be called."""
    weights = net.state_dict()
    for images_seen in SNAPSHOT_TIMES:
        for sigma_rel in SNAPSHOT_SIGMA_RELS:
            metadata = {"images_seen": images_seen, "sigma_rel": sigma_rel}
            write_snapshot(folder / snapshot_name(images_seen, sigma_rel), weights, metadata, torch.float16)
    snapshots = find_snapshots(folder)
    return lambda: reconstruct_files(snapshots, [0.075], [folder / "made.safetensors"], [{}])


SECTIONS = {"training": training, "sampling": sampling, "vae": vae, "ema": ema}
"""By name, in the order in which they are measured."""
