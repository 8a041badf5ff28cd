"""Bins of noise levels, and the gradient that each of them asks for: noise levels as tasks that share one network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edm2.networks import Precond
from edm2.training.loss.noise import NoiseDistribution, levels

GAP = 1e-9
"""Probability to either side of an edge: the edge lies between the steps of a discrete distribution."""


@dataclass(frozen=True, eq=False)
class NoiseBins:
    """Ranges of noise levels that share all of them out, made by `equal_bins`.

    Attributes:
        edges: Where one bin ends and the next begins, ascending: float64 [bins - 1]. The outer two are open.
        centers: A noise level within each bin, ascending: float64 [bins].
    """

    edges: Tensor
    centers: Tensor

    def __len__(self) -> int:
        return len(self.centers)

    def index(self, sigma: Tensor) -> Tensor:
        """Bin of each noise level: int64, shaped like `sigma`."""
        return torch.bucketize(sigma, self.edges.to(sigma))


def equal_bins(distribution: NoiseDistribution, count: int) -> NoiseBins:
    """Bins that are equally probable under `distribution`, around their medians.

    The steps of a discrete distribution stay whole: there, probabilities are equal up to one step.

    Raises:
        ValueError: `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"{count} bins of noise levels are too few: there must be at least 1")
    quantile = torch.arange(1, count, dtype=torch.float64) / count
    below, above = (distribution.sigma(torch.special.ndtri(quantile + side)) for side in (-GAP, GAP))
    return NoiseBins((below * above).sqrt(), levels(distribution, count))


def bin_gradients(losses: Tensor, index: Tensor, parameters: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Gradient of each bin's summed loss. Sums, so that those of micro-batches and processes may be added up.

    Keeps the graph of `losses`, and leaves the `grad` of all parameters alone.

    Args:
        losses: Loss of each image, [N], with a graph to `parameters`.
        index: Bin of each image, int64 [N].
        parameters: P numbers in all.
        count: Number of bins.

    Returns:
        (gradients [count, P], zero for bins without images; images per bin, int64 [count]). The mean gradient of a
        bin is the quotient.
    """
    images = torch.bincount(index, minlength=count)
    gradients = losses.new_zeros(count, sum(parameter.numel() for parameter in parameters))
    for i in images.nonzero().flatten().tolist():
        parts = torch.autograd.grad(losses[index == i].sum(), parameters, retain_graph=True)
        gradients[i] = torch.cat([part.flatten() for part in parts])
    return gradients, images


def x0_gradients(
    net: Precond, bins: NoiseBins, images: Tensor, labels: Tensor | None, sigma: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """`bin_gradients` of each image's squared error ||D - y||², with respect to `last_convolutions`.

    Costs a forward pass, and for each bin a backward pass through the last layers.

    Args:
        net: Denoiser.
        bins: Bins of noise levels.
        images: Clean data y, [N, C, H, W].
        labels: Classes in any form that `net` takes.
        sigma: Noise levels, [N].
        noise: Unit Gaussian noise shaped like `images`.
    """
    parameters = last_convolutions(net)
    with only_trainable(net, parameters), torch.enable_grad():
        denoised = net(images + sigma.reshape(-1, 1, 1, 1) * noise, sigma, labels)
        losses = (denoised - images).square().sum(dim=(1, 2, 3))
        return bin_gradients(losses, bins.index(sigma), parameters, len(bins))


def last_convolutions(net: Precond, count: int = 2) -> list[nn.Parameter]:
    """Weights of the last `count` 3x3 convolutions: of the output, and of the last decoder block.

    All configurations of the ladder end with them, and register them last. What a noise level asks of the network
    passes through them, at little cost.
    """
    weights = [weight for weight in net.unet.parameters() if weight.ndim == 4 and weight.shape[-1] > 1]
    return weights[-count:]


@contextmanager
def only_trainable(net: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within this context no other parameter of `net` asks for a gradient: the graph is as short as it can be."""
    chosen = {id(parameter) for parameter in parameters}
    others = [p for p in net.parameters() if p.requires_grad and id(p) not in chosen]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
