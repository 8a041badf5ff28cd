"""Comparisons with other implementations, by turns in one process; each rival yields its comparisons."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from edm2.planning.costs import count_flops
from edm2.post_hoc_ema import sigma_rel_to_gamma
from edm2.tools.bench.karras import count_karras_flops, equal_karras_unet
from edm2.tools.bench.plain import PlainTraining, plain_copy, plain_heun, plain_loss
from edm2.tools.bench.report import Comparison
from edm2.tools.bench.sections import GUIDANCE, Bench, evaluation, guided_heun, heun
from edm2.tools.bench.timing import Work
from edm2.training.config import DTYPES


def against_plain(bench: Bench) -> Iterator[Comparison]:
    """Compare with the plain form (plain.py) of the same network, with the same weights and inputs."""
    if "training" in bench.workload.settings.sections:
        yield from _plain_training(bench)
    if "sampling" in bench.workload.settings.sections:
        yield from _plain_sampling(bench)


def _plain_training(bench: Bench) -> Iterator[Comparison]:
    workload, ours, inputs = bench.workload, bench.workload.training(), bench.workload.inputs()
    batch, config = workload.settings.batch, workload.config
    net = plain_copy(ours.net)
    net.compute_dtype = DTYPES[workload.settings.against_precision]
    gammas = [float(gamma) for gamma in sigma_rel_to_gamma(config.sigma_rels)]
    plain = PlainTraining(net, batch, ours.learning_rate, config.betas, gammas, config.loss_scale)

    def their_passes() -> None:
        plain.optimizer.zero_grad(set_to_none=True)
        (plain_loss(net, *inputs).sum() / batch).backward()

    def compared(part: str, ours: Work, theirs: Work, what: str) -> Comparison:
        return bench.compared("training", part, "plain", ours, theirs, what)

    yield compared(
        "forward and backward", lambda: ours.passes(inputs), their_passes,
        "loss and gradients of one batch, forced weight normalization included",
    )  # fmt: skip
    yield compared(
        "whole step", lambda: ours.step_on(inputs), lambda: plain.step([inputs]),
        "a training step on the same images, noise levels and noise: gradients, Adam and two averages",
    )  # fmt: skip
    yield compared(
        "averages", ours.update_averages, lambda: plain.ema.update(plain.images_seen, batch),
        "one update of two averages",
    )  # fmt: skip


def _plain_sampling(bench: Bench) -> Iterator[Comparison]:
    workload, steps = bench.workload, bench.workload.settings.steps
    ours, inputs = workload.inference_form(), workload.inputs()
    theirs = plain_copy(workload.net().eval())
    theirs.compute_dtype = DTYPES[workload.settings.against_precision]

    def their_heun(guide: Callable | None) -> Work:
        options = {"num_steps": steps, "guide": guide, "guidance": GUIDANCE}
        return lambda: plain_heun(theirs, inputs.noise, inputs.labels, **options)

    what = f"{2 * steps - 1} evaluations of Heun's method"
    our_heun = heun(ours, inputs, steps)
    yield bench.compared("sampling", "Heun", "plain", our_heun, their_heun(None), f"{what} from the same noise")
    if inputs.labels is not None:
        yield bench.compared(
            "sampling", "Heun with guidance", "plain", guided_heun(ours, inputs, steps), their_heun(theirs),
            f"{what} with classifier-free guidance: ours one batch of twice the size, theirs one after the other",
        )  # fmt: skip


def against_karras_unet(bench: Bench) -> Iterator[Comparison]:
    """Compare with a `KarrasUnet` of as many parameters (karras.py)."""
    workload, sections = bench.workload, bench.workload.settings.sections
    theirs = equal_karras_unet(workload.network).to(workload.device)
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    flops = count_karras_flops(theirs, workload.network) / (2 * count_flops(workload.network))
    size = f"theirs has {count / workload.parameters:.3f} times the parameters and {flops:.2f} times the operations"
    if "training" in sections:
        yield _karras_passes(bench, theirs.train(), size)
    if "sampling" in sections:
        yield _karras_evaluation(bench, theirs.eval(), size)


def _karras_passes(bench: Bench, net: nn.Module, size: str) -> Comparison:
    ours, inputs = bench.workload.training(), bench.workload.inputs()
    images, labels, sigma, noise = inputs

    def theirs() -> None:
        net.zero_grad(set_to_none=True)
        with _autocast(bench):
            output = net(noise, sigma.log() / 4, class_labels=labels)
        ((output.float() - images).square().sum() / len(images)).backward()

    what = f"gradients of one batch: ours of D and u with preconditioning, theirs of the U-Net's output alone; {size}"
    return bench.compared("training", "forward and backward", "karras-unet", lambda: ours.passes(inputs), theirs, what)


def _karras_evaluation(bench: Bench, net: nn.Module, size: str) -> Comparison:
    inputs = bench.workload.inputs()
    images, labels, sigma, _ = inputs

    @torch.no_grad()
    def theirs() -> None:
        with _autocast(bench):
            net(images, sigma.log() / 4, class_labels=labels)

    what = f"one evaluation: ours of D with preconditioning, theirs of the U-Net alone; {size}"
    ours = evaluation(bench.workload.inference_form(), inputs)
    return bench.compared("sampling", "evaluation", "karras-unet", ours, theirs, what)


def _autocast(bench: Bench) -> AbstractContextManager:
    """The way in which that package lowers the precision."""
    precision = bench.workload.settings.against_precision
    return nullcontext() if precision == "fp32" else torch.autocast(bench.clock.device.type, DTYPES[precision])


RIVALS = {"plain": against_plain, "karras-unet": against_karras_unet}
"""Rivals by name."""
