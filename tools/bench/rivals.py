"""Comparisons with other implementations, by turns in one process; each rival yields its comparisons."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch

from edm2.networks.reference import ReferencePrecond, reference_loss
from edm2.planning.costs import count_flops
from edm2.post_hoc_ema import sigma_rel_to_gamma
from edm2.tools.bench.karras import count_karras_flops, equal_karras_unet
from edm2.tools.bench.plain import PlainTraining, plain_copy, plain_heun
from edm2.tools.bench.report import Comparison
from edm2.tools.bench.sections import GUIDANCE, Bench, evaluation, heun
from edm2.tools.bench.timing import Work
from edm2.tools.bench.workload import step_on, step_passes
from edm2.training.config import DTYPES
from edm2.training.step import TrainStep


def against_plain(bench: Bench) -> Iterator[Comparison]:
    """Compare with the plain form (plain.py) of the same network, with the same weights and inputs."""
    if "training" in bench.workload.settings.sections:
        yield from _plain_training(bench)
    if "sampling" in bench.workload.settings.sections:
        yield from _plain_sampling(bench)


def _plain_training(bench: Bench) -> Iterator[Comparison]:
    workload, inputs = bench.workload, bench.workload.inputs()
    batch, config = workload.settings.batch, workload.config
    ours = TrainStep(config, workload.net())
    net = plain_copy(ours.net)
    net.compute_dtype = DTYPES[workload.settings.against_precision]
    gammas = [float(gamma) for gamma in sigma_rel_to_gamma(config.sigma_rels)]
    plain = PlainTraining(net, batch, lambda seen: ours.learning_rate(), config.betas, gammas, config.loss_scale)

    def their_passes() -> None:
        plain.optimizer.zero_grad(set_to_none=True)
        (reference_loss(net, *inputs, net.config.sigma_data).sum() / batch).backward()

    def compared(part: str, ours: Work, theirs: Work, what: str) -> Comparison:
        return bench.compared("training", part, "plain", ours, theirs, what)

    yield compared(
        "forward and backward", lambda: step_passes(ours, inputs), their_passes,
        "loss and gradients of one batch, forced weight normalization included",
    )  # fmt: skip
    yield compared(
        "whole step", lambda: step_on(ours, inputs), lambda: plain.step([inputs]),
        "a training step on the same images, noise levels and noise: gradients, Adam and two averages",
    )  # fmt: skip
    yield compared(
        "averages", lambda: ours.ema.update(ours.ema.images_seen + batch),
        lambda: plain.ema.update(plain.images_seen, batch), "one update of two averages",
    )  # fmt: skip


def _plain_sampling(bench: Bench) -> Iterator[Comparison]:
    workload, steps = bench.workload, bench.workload.settings.steps
    ours, inputs = workload.inference_form(), workload.inputs()
    theirs = plain_copy(workload.net().eval())
    theirs.compute_dtype = DTYPES[workload.settings.against_precision]

    def their_heun(guide: ReferencePrecond | None = None) -> Work:
        noise, labels = inputs.noise, inputs.labels
        return lambda: plain_heun(theirs, noise, labels, num_steps=steps, guide=guide, guidance=GUIDANCE)

    what = f"{2 * steps - 1} evaluations of Heun's method"
    our_heun = heun(ours, inputs, steps)
    yield bench.compared("sampling", "Heun", "plain", our_heun, their_heun(), f"{what} from the same noise")
    if inputs.labels is not None:
        our_heun = heun(ours, inputs, steps, is_guided=True)
        what += " with classifier-free guidance: ours one batch of twice the size, theirs one after the other"
        yield bench.compared("sampling", "Heun with guidance", "plain", our_heun, their_heun(theirs), what)


def against_karras_unet(bench: Bench) -> Iterator[Comparison]:
    """Compare with a `KarrasUnet` of as many parameters (karras.py)."""
    workload, sections = bench.workload, bench.workload.settings.sections
    theirs = equal_karras_unet(workload.network).to(workload.device)
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    flops = count_karras_flops(theirs, workload.network) / (2 * count_flops(workload.network))
    size = f"theirs has {count / workload.parameters:.3f} times the parameters and {flops:.2f} times the operations"
    inputs, precision = workload.inputs(), workload.settings.against_precision
    images, labels, sigma, noise = inputs
    # The way in which that package lowers the precision.
    autocast = nullcontext() if precision == "fp32" else torch.autocast(workload.device.type, DTYPES[precision])

    def their_passes() -> None:
        theirs.zero_grad(set_to_none=True)
        with autocast:
            output = theirs(noise, sigma.log() / 4, class_labels=labels)
        ((output.float() - images).square().sum() / len(images)).backward()

    @torch.no_grad()
    def their_evaluation() -> None:
        with autocast:
            theirs(images, sigma.log() / 4, class_labels=labels)

    if "training" in sections:
        theirs.train()
        step = TrainStep(workload.config, workload.net())
        yield bench.compared(
            "training", "forward and backward", "karras-unet", lambda: step_passes(step, inputs), their_passes,
            f"gradients of one batch: ours of D and u with preconditioning, theirs of the U-Net's output alone; {size}",
        )  # fmt: skip
    if "sampling" in sections:
        theirs.eval()
        ours = evaluation(workload.inference_form(), inputs)
        what = f"one evaluation: ours of D with preconditioning, theirs of the U-Net alone; {size}"
        yield bench.compared("sampling", "evaluation", "karras-unet", ours, their_evaluation, what)


RIVALS = {"plain": against_plain, "karras-unet": against_karras_unet}
"""Rivals by name."""
