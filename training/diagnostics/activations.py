"""Activation magnitudes per block and resolution (Appendix A.6, Figures 3 and 15)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edm2.networks import Precond
from edm2.training.diagnostics.batches import Batch
from edm2.training.diagnostics.layers import block_layers, listening
from edm2.training.diagnostics.magnitudes import largest_and_mean, sum_of_squares


class FeatureMagnitudes:
    """Adds up the squares of the features of layers, from call to call."""

    def __init__(self) -> None:
        self.squares: dict[nn.Module, Tensor] = {}
        self.counts: dict[nn.Module, int] = {}

    def hear(self, layer: nn.Module, output: Tensor) -> None:
        """Take in an output [N, C] or [N, C, H, W]: bias and gain included, before any nonlinearity."""
        squares = sum_of_squares(output.detach())
        self.squares[layer] = self.squares[layer] + squares if layer in self.squares else squares
        self.counts[layer] = self.counts.get(layer, 0) + output.numel() // output.shape[1]

    def of(self, layer: nn.Module) -> Tensor:
        """M[h_i] = sqrt(mean_j h_ij²) of each feature i, over images and pixels j."""
        return (self.squares[layer] / self.counts[layer]).sqrt()


@torch.no_grad()
def measure_activations(net: Precond, batches: Iterable[Batch]) -> dict[str, Any]:
    """Magnitudes of what every layer with trainable weights in the blocks puts out, attention and embedding included.

    Args:
        net: In evaluation mode; the paper measures averaged weights.
        batches: Training images at the noise levels of training.

    Returns:
        {"max": ..., "mean": ..., "images": ...}: the largest and the mean over the features of each bucket.
    """
    layers = block_layers(net)
    magnitudes = FeatureMagnitudes()
    images = 0
    with listening([layer.module for layer in layers], magnitudes.hear):
        for batch in batches:
            net(batch.noisy, batch.sigma, batch.labels)
            images += len(batch.images)
    return largest_and_mean((layer.bucket, magnitudes.of(layer.module)) for layer in layers) | {"images": images}
