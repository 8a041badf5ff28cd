"""One forward and backward pass per bin of noise levels, for all instruments that need one.

It leaves the gradients and random numbers of training alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edm2.networks import Precond
from edm2.networks.skeleton import blocks
from edm2.training.diagnostics.batches import ProbeBatch
from edm2.training.diagnostics.layers import listening
from edm2.training.diagnostics.magnitudes import number
from edm2.training.loss.objective import DenoisingLoss
from edm2.training.loss.weighting import edm_weight


def measure_noise_levels(
    net: Precond, loss: DenoisingLoss, bins: Mapping[float, ProbeBatch], images_per_forward: int
) -> dict[str, Any]:
    """Gradient norm, loss, u(sigma) and shares of what was clipped or not finite.

    Args:
        net: The network as the optimizer sees it; measured without dropout.
        loss: The training objective.
        bins: Images at the noise levels of each bin, by its median.
        images_per_forward: At most so many at once.

    Returns:
        "noise_levels": for each bin the "gradient_norm" of the mean training loss per image, the "loss", the mean of
        lambda (D - y)² per element, and "u" = ln mean e^u(sigma), which approaches the logarithm of the loss (left out
        where the objective does without); "clipped_activations": the share in all blocks with a bound; "nonfinite":
        the share of "entries" of all gradients.
    """
    training = net.training
    net.eval()
    clipped = ClippedShare()
    try:
        with listening(blocks(net), clipped.hear):
            results = {f"{s:.4g}": _measure_bin(net, loss, batch, images_per_forward) for s, batch in bins.items()}
    finally:
        net.train(training)
    nonfinite = [result.pop("nonfinite") for result in results.values()]
    quantities = ("gradient_norm", "loss", "u") if loss.weighting.uses_uncertainty else ("gradient_norm", "loss")
    levels: dict[str, Any] = {name: {s: number(result[name]) for s, result in results.items()} for name in quantities}
    return {
        "noise_levels": levels | {"images": len(next(iter(bins.values())).images)},
        "clipped_activations": clipped.share,
        "nonfinite": {"entries": number(sum(nonfinite) / len(nonfinite))},
    }


def _measure_bin(net: Precond, loss: DenoisingLoss, batch: ProbeBatch, images_per_forward: int) -> dict[str, float]:
    gradient, errors = BinGradient(net, len(batch.images)), DenoiserError(net)
    for part in batch.split(images_per_forward):
        gradient.add(errors.listen(loss, part))
    norm, nonfinite = gradient.norm_and_nonfinite()
    error, expected = errors.sums.tolist()
    u = math.log(expected / len(batch.images)) if expected > 0 else math.nan
    return {"gradient_norm": float(norm), "loss": error / len(batch.images), "u": u, "nonfinite": nonfinite}


class DenoiserError:
    """lambda(sigma) (D - y)² and e^u per element, summed over images; heard from the denoiser."""

    def __init__(self, net: Precond) -> None:
        self.net = net
        self.sums = torch.zeros(2)

    def listen(self, loss: DenoisingLoss, batch: ProbeBatch) -> Tensor:
        """The training loss per element; on the way, note what the denoiser said."""
        heard: list[tuple[Tensor, Tensor]] = []
        with listening([self.net], lambda net, output: heard.append(output)):
            elements = loss(self.net, batch.images, batch.labels, sigma=batch.sigma, noise=batch.noise)
        (denoised, u), *_ = heard
        sigma = batch.sigma.reshape(-1, 1, 1, 1).cpu().double()  # in this order: MPS has no float64
        weight = edm_weight(sigma, self.net.sigma_data).to(denoised)
        error = (weight * (denoised.detach() - batch.images) ** 2).mean(dim=(1, 2, 3)).sum()
        self.sums += torch.stack([error, u.detach().exp().sum()]).cpu()
        return elements


class BinGradient:
    """The gradient of the mean loss of a bin, from part to part."""

    def __init__(self, net: nn.Module, images: int) -> None:
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.images = images
        self.sums: list[Tensor | None] = [None] * len(self.parameters)

    def add(self, loss: Tensor) -> None:
        """Take in the loss per element of some images; `p.grad` stays as it is."""
        grads = torch.autograd.grad(loss.sum() / self.images, self.parameters, allow_unused=True)
        self.sums = [b if a is None else a if b is None else a + b for a, b in zip(self.sums, grads, strict=True)]

    def norm_and_nonfinite(self) -> tuple[Tensor, float]:
        """(L2 norm over all parameters, share of entries that are NaN or infinite), the former without the latter."""
        grads = [grad for grad in self.sums if grad is not None]
        entries = sum(grad.numel() for grad in grads)
        nonfinite = entries - int(sum(grad.isfinite().sum() for grad in grads))
        if nonfinite:
            grads = [torch.nan_to_num(grad, nan=0, posinf=0, neginf=0) for grad in grads]
        return torch.nn.utils.get_total_norm(grads), nonfinite / entries


class ClippedShare:
    """The share of activations that leave a block at its bound."""

    def __init__(self) -> None:
        self.clipped = 0
        self.all = 0

    def hear(self, block: nn.Module, output: Tensor) -> None:
        """Take in the output of a block; one without a bound does not count."""
        bound = getattr(block, "clip_act", None)
        if bound is not None:
            self.clipped = self.clipped + (output.detach().abs() >= bound).sum()
            self.all += output.numel()

    @property
    def share(self) -> float | None:
        """None if no block has a bound."""
        return number(int(self.clipped) / self.all) if self.all else None
