"""Whom we are compared with, and in what: a generator of comparisons each."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from edm2.networks import NetworkConfig
from edm2.planning.costs import count_flops
from edm2.post_hoc_ema import sigma_rel_to_gamma
from edm2.sampling.guidance import guided, without_labels
from edm2.tools.bench.clock import Work
from edm2.tools.bench.karras import check_karras_unet, count_karras_flops, equal_karras_unet
from edm2.tools.bench.plain import PlainTraining, plain_copy, plain_heun, plain_loss
from edm2.tools.bench.results import Comparison
from edm2.tools.bench.sections import GUIDANCE, Bench, evaluation, heun, inference_form, passes
from edm2.training.config import DTYPES
from edm2.training.data.batches import Batch
from edm2.training.draws import GivenDraws


def against_plain(bench: Bench) -> Iterator[Comparison]:
    """The plain form (see plain.py) of the same network, with the same weights and inputs."""
    if "training" in bench.workload.settings.sections:
        yield from _plain_training(bench)
    if "sampling" in bench.workload.settings.sections:
        yield from _plain_sampling(bench)


def _plain_training(bench: Bench) -> Iterator[Comparison]:
    workload, step = bench.workload, bench.workload.train_step()
    theirs = plain_copy(step.net)
    theirs.compute_dtype = DTYPES[workload.settings.against_precision]
    batch, config = workload.settings.batch, workload.config
    gammas = [float(gamma) for gamma in sigma_rel_to_gamma(config.sigma_rels)]
    plain = PlainTraining(theirs, batch, lambda seen: step.learning_rate(), config.betas, gammas, config.loss_scale)
    images, labels, sigma, noise = inputs = workload.inputs()

    def their_passes() -> None:
        plain.optimizer.zero_grad(set_to_none=True)
        (plain_loss(theirs, *inputs).sum() / batch).backward()

    def our_step() -> None:
        step.draws = GivenDraws(step.images_seen, sigma, noise)
        step([Batch(images, labels)])

    yield _compared(
        bench, "training", "forward and backward", "plain", passes(step, inputs), their_passes,
        "loss and gradients of one batch, forced weight normalization included",
    )  # fmt: skip
    yield _compared(
        bench, "training", "whole step", "plain", our_step, lambda: plain.step([inputs]),
        "a training step on the same images, noise levels and noise: gradients, Adam and two averages",
    )  # fmt: skip
    seen = itertools.count(step.images_seen + 1)
    yield _compared(
        bench, "training", "averages", "plain",
        lambda: step.ema.update(next(seen)), lambda: plain.ema.update(plain.images_seen, batch),
        "one update of two averages",
    )  # fmt: skip


def _plain_sampling(bench: Bench) -> Iterator[Comparison]:
    workload, settings = bench.workload, bench.workload.settings
    ours = inference_form(workload)
    theirs = plain_copy(workload.net().eval())
    theirs.compute_dtype = DTYPES[settings.against_precision]
    _, labels, _, noise = workload.inputs()

    def their_work(guide: Callable | None) -> Work:
        options: dict[str, Any] = {"num_steps": settings.steps, "guide": guide, "guidance": GUIDANCE}
        return lambda: plain_heun(theirs, noise, labels, **options)

    count = f"{2 * settings.steps - 1} evaluations of Heun's method"
    our_work = heun(ours, noise, labels, settings.steps)
    yield _compared(bench, "sampling", "Heun", "plain", our_work, their_work(None), f"{count} from the same noise")
    if labels is not None:
        our_work = heun(guided(ours, without_labels(ours), GUIDANCE), noise, labels, settings.steps)
        yield _compared(
            bench, "sampling", "Heun with guidance", "plain", our_work, their_work(theirs),
            f"{count} with classifier-free guidance: ours one batch of twice the size, theirs one after the other",
        )  # fmt: skip


def against_karras_unet(bench: Bench) -> Iterator[Comparison]:
    """`KarrasUnet` with as many parameters (see karras.py)."""
    workload, sections = bench.workload, bench.workload.settings.sections
    theirs = equal_karras_unet(workload.network).to(workload.device)
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    flops = count_karras_flops(theirs, workload.network) / (2 * count_flops(workload.network))
    size = f"theirs has {count / workload.parameters:.3f} times the parameters and {flops:.2f} times the operations"
    if "training" in sections:
        yield _karras_passes(bench, theirs, size)
    if "sampling" in sections:
        yield _karras_evaluation(bench, theirs, size)


def _karras_passes(bench: Bench, theirs: nn.Module, size: str) -> Comparison:
    workload, step = bench.workload, bench.workload.train_step()
    images, labels, sigma, noise = inputs = workload.inputs()
    theirs, lowered = theirs.train(), _autocast(bench)

    def their_passes() -> None:
        theirs.zero_grad(set_to_none=True)
        with lowered():
            output = theirs(noise, sigma.log() / 4, class_labels=labels)
        ((output.float() - images).square().sum() / len(images)).backward()

    what = f"gradients of one batch: ours of D and u with preconditioning, theirs of the U-Net's output alone; {size}"
    ours = passes(step, inputs)
    return _compared(bench, "training", "forward and backward", "karras-unet", ours, their_passes, what)


def _karras_evaluation(bench: Bench, theirs: nn.Module, size: str) -> Comparison:
    workload = bench.workload
    images, labels, sigma, _ = inputs = workload.inputs()
    theirs, lowered = theirs.eval(), _autocast(bench)

    @torch.no_grad()
    def their_evaluation() -> None:
        with lowered():
            theirs(images, sigma.log() / 4, class_labels=labels)

    what = f"one evaluation: ours of D with preconditioning, theirs of the U-Net alone; {size}"
    ours = evaluation(inference_form(workload), inputs)
    return _compared(bench, "sampling", "evaluation", "karras-unet", ours, their_evaluation, what)


def _autocast(bench: Bench) -> Callable[[], AbstractContextManager]:
    """How that package lowers the precision."""
    settings = bench.workload.settings
    if settings.against_precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(bench.clock.device.type, DTYPES[settings.against_precision])


def _compared(bench: Bench, section: str, part: str, rival: str, ours: Work, theirs: Work, what: str) -> Comparison:
    settings = bench.workload.settings
    durations = bench.clock.alternate({"ours": ours, "theirs": theirs})
    precisions = settings.precision, settings.against_precision
    return Comparison.of(section, part, rival, precisions, what, durations["ours"], durations["theirs"])


RIVALS = {"plain": against_plain, "karras-unet": against_karras_unet}
"""By name."""


def check_rivals(names: Sequence[str], network: NetworkConfig) -> None:
    """Before anything is measured.

    Raises:
        MissingRival: one is not installed.
        ValueError: one has no such network.
    """
    if "karras-unet" in names:
        check_karras_unet(network)
