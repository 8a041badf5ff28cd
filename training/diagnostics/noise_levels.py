"""Gradient norm, loss and u(sigma) per bin of noise levels, from one forward and backward pass per bin.

The gradients and random numbers of training stay as they are.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edm2.networks import Precond
from edm2.networks.blocks import blocks
from edm2.training.diagnostics.batches import ProbeBatch
from edm2.training.diagnostics.layers import output_hooks
from edm2.training.diagnostics.magnitudes import number
from edm2.training.loss.objective import DenoisingLoss
from edm2.training.loss.weighting import edm_weight


def measure_noise_levels(
    net: Precond, loss: DenoisingLoss, bins: Mapping[float, ProbeBatch], images_per_forward: int
) -> dict[str, Any]:
    """Gradient norm, loss and u(sigma) per bin; fractions of clipped activations and of non-finite gradients.

    Args:
        net: The network as the optimizer sees it; measured without dropout.
        loss: The training objective.
        bins: Images at the noise levels of each bin, by its median.
        images_per_forward: Largest number of images in a forward pass.

    Returns:
        "noise_levels": for each bin the "gradient_norm" of the mean training loss per image, the "loss", the mean of
        lambda (D - y)² per element, and "u" = ln mean e^u(sigma), which approaches the logarithm of the loss (left out
        where the objective does without); "clipped_activations": the fraction in all blocks with a bound; "nonfinite":
        the fraction of "entries" of all gradients.
    """
    bounded = [block for block in blocks(net) if getattr(block, "clip_act", None) is not None]
    clipped: list[Tensor] = []
    activations: list[int] = []

    def count_clipped(block: Any, output: Tensor) -> None:
        clipped.append((output.detach().abs() >= block.clip_act).sum())
        activations.append(output.numel())

    training = net.training
    net.eval()
    try:
        with output_hooks(bounded, count_clipped):
            measured = {f"{s:.4g}": _measure_bin(net, loss, batch, images_per_forward) for s, batch in bins.items()}
    finally:
        net.train(training)
    nonfinite = sum(bin_["nonfinite"] for bin_ in measured.values()) / len(measured)
    quantities = ("gradient_norm", "loss", "u") if loss.weighting.uses_uncertainty else ("gradient_norm", "loss")
    levels: dict[str, Any] = {name: {s: number(bin_[name]) for s, bin_ in measured.items()} for name in quantities}
    return {
        "noise_levels": levels | {"images": len(next(iter(bins.values())).sigma)},
        "clipped_activations": number(int(sum(clipped)) / sum(activations)) if bounded else None,
        "nonfinite": {"entries": number(nonfinite)},
    }


def _measure_bin(net: Precond, loss: DenoisingLoss, batch: ProbeBatch, images_per_forward: int) -> dict[str, float]:
    parameters = [p for p in net.parameters() if p.requires_grad]
    gradient: list[Tensor | None] = [None] * len(parameters)
    sums = torch.zeros(2)
    images = len(batch.sigma)
    for part in batch.split(images_per_forward):
        elements, part_sums = loss_and_denoiser_error(net, loss, part)
        grads = torch.autograd.grad(elements.sum() / images, parameters, allow_unused=True)  # p.grad stays as it is
        gradient = [b if a is None else a if b is None else a + b for a, b in zip(gradient, grads, strict=True)]
        sums += part_sums
    norm, nonfinite = _norm_and_nonfinite([grad for grad in gradient if grad is not None])
    error, e_u = (value / images for value in sums.tolist())
    return {"gradient_norm": norm, "loss": error, "u": math.log(e_u) if e_u > 0 else math.nan, "nonfinite": nonfinite}


def loss_and_denoiser_error(net: Precond, loss: DenoisingLoss, probe: ProbeBatch) -> tuple[Tensor, Tensor]:
    """The training loss per element, and sums over images of the denoiser's EDM loss and of e^u, from one forward pass.

    Returns:
        (loss [N, C, H, W], [sum of lambda(sigma) (D - y)² per element, sum of e^u(sigma); 0 without u] on the CPU).
    """
    batch, outputs = probe.batch, list[Any]()
    with output_hooks([net], lambda _, output: outputs.append(output)):
        elements = loss(net, batch.images, batch.labels, sigma=probe.sigma, noise=probe.noise, **batch.given)
    denoised, u = outputs[0] if isinstance(outputs[0], tuple) else (outputs[0], None)
    sigma = probe.sigma.reshape(-1, 1, 1, 1).cpu().double()  # in this order: MPS has no float64
    weight = edm_weight(sigma, net.sigma_data).to(denoised)
    error = (weight * (denoised.detach() - batch.images) ** 2).mean(dim=(1, 2, 3)).sum()
    e_u = torch.zeros_like(error) if u is None else u.detach().exp().sum()
    return elements, torch.stack([error, e_u]).cpu()


def _norm_and_nonfinite(grads: list[Tensor]) -> tuple[float, float]:
    """(L2 norm of the finite entries, fraction of entries that are NaN or infinite)."""
    entries = sum(grad.numel() for grad in grads)
    nonfinite = entries - int(sum(grad.isfinite().sum() for grad in grads))
    if nonfinite:
        grads = [torch.nan_to_num(grad, nan=0, posinf=0, neginf=0) for grad in grads]
    return float(torch.nn.utils.get_total_norm(grads)), nonfinite / entries
