"""Bins of noise levels, and the gradient of the loss in each: noise levels as tasks that share one network."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edm2.networks import Precond
from edm2.training.loss.noise import NoiseDistribution

GAP = 1e-9
"""Probability to either side of an edge: the edge lies between the steps of a discrete distribution."""


@dataclass(frozen=True, eq=False)
class NoiseBins:
    """Intervals that cover all noise levels, made by `equal_bins`.

    Args:
        edges: Bounds between neighbouring bins, ascending, float64 [bins - 1]; the outer two bins are open.
    """

    edges: Tensor

    def __len__(self) -> int:
        return len(self.edges) + 1

    def index(self, sigma: Tensor) -> Tensor:
        """Bin of each noise level: int64, shaped like `sigma`."""
        return torch.bucketize(sigma, self.edges.to(sigma))


def equal_bins(distribution: NoiseDistribution, count: int) -> NoiseBins:
    """Make bins that are equally probable under `distribution`.

    The steps of a discrete distribution stay whole: there, probabilities are equal up to one step.
    """
    quantile = torch.arange(1, count, dtype=torch.float64) / count
    below, above = (distribution.sigma(torch.special.ndtri(quantile + side)) for side in (-GAP, GAP))
    return NoiseBins((below * above).sqrt())


def x0_gradients(
    net: Precond,
    bins: NoiseBins,
    images: Tensor,
    labels: Tensor | None,
    sigma: Tensor,
    noise: Tensor,
    conditions: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the summed squared error ||D - y||² of each bin's images, with respect to `last_convolutions`.

    Being sums, those of micro-batches and processes may be added up. Costs a forward pass, and for each bin a backward
    pass through the last layers; `grad` of all parameters stays as it is.

    Args:
        net: Denoiser.
        bins: Bins of noise levels.
        images: Clean data y, [N, C, H, W].
        labels: Classes in any form that `net` takes.
        sigma: Noise levels, [N].
        noise: Unit Gaussian noise shaped like `images`.
        conditions: Further conditions by name, for `net`.

    Returns:
        (gradients [bins, P], zero for bins without images; images per bin, int64 [bins]). The mean gradient of a bin is
        the quotient.
    """
    parameters = last_convolutions(net)
    index = bins.index(sigma)
    counts = torch.bincount(index, minlength=len(bins))
    gradients = images.new_zeros(len(bins), sum(parameter.numel() for parameter in parameters))
    with only_trainable(net, parameters):
        denoised = net(images + sigma.reshape(-1, 1, 1, 1) * noise, sigma, labels, conditions=conditions)
        losses = (denoised - images).square().sum(dim=(1, 2, 3))  # [N]
        for i in counts.nonzero().flatten().tolist():
            parts = torch.autograd.grad(losses[index == i].sum(), parameters, retain_graph=True)
            gradients[i] = torch.cat([part.flatten() for part in parts])
    return gradients, counts


def last_convolutions(net: Precond) -> list[nn.Parameter]:
    """Weights of the last two 3x3 convolutions: of the last decoder block, and of the output.

    All configurations of the ladder end with them, and register them last. Gradients of all noise levels pass through
    them, and cost little.
    """
    weights = [weight for weight in net.unet.parameters() if weight.ndim == 4 and weight.shape[-1] > 1]
    return weights[-2:]


@contextmanager
def only_trainable(net: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the context, no other parameter of `net` requires a gradient: the graph begins at the first of these."""
    chosen = {id(parameter) for parameter in parameters}
    others = [p for p in net.parameters() if p.requires_grad and id(p) not in chosen]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
