"""Magnitudes per feature, and their largest and mean value in each bucket (Appendix A.6, Figures 3 and 15)."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edm2.networks import Precond
from edm2.training.diagnostics.batches import ProbeBatch
from edm2.training.diagnostics.layers import block_layers, listening

Buckets = dict[str, "float | None"]
"""A number for each bucket, such as "Enc 8x8"; None where it is not finite."""


def sum_of_squares(x: Tensor) -> Tensor:
    """Sum of squares of each feature of [N, C] or [N, C, H, W], over images and pixels: [C], at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.ndim > 2:  # pixels first: on a CPU several times as fast as all at once
        x = torch.linalg.vector_norm(x.flatten(2), dim=2, dtype=dtype)
    return x.to(dtype).square().sum(0)


def magnitude_per_unit(weight: Tensor) -> Tensor:
    """M[w_i] = sqrt(mean_j w_ij²) for each output unit i of a weight [out, ...]."""
    return weight.flatten(1).square().mean(1).sqrt()


def largest_and_mean(magnitudes: Iterable[tuple[str, Tensor]]) -> dict[str, Buckets]:
    """{"max": ..., "mean": ...} over all features of a bucket, from (bucket, magnitudes of the features of a layer)."""
    collected: dict[str, list[Tensor]] = {}
    for bucket, values in magnitudes:
        collected.setdefault(bucket, []).append(values.float())
    joined = {bucket: torch.cat(values) for bucket, values in collected.items()}
    return {
        "max": numbers({bucket: values.max() for bucket, values in joined.items()}),
        "mean": numbers({bucket: values.mean() for bucket, values in joined.items()}),
    }


def numbers(values: Mapping[str, "Tensor | float"]) -> Buckets:
    """`number` of each; waits for the device."""
    return {key: number(value) for key, value in values.items()}


def number(value: "Tensor | float") -> float | None:
    """Five digits, which is what a record needs; None for NaN and infinity, which JSON does not know."""
    value = float(value)
    return float(f"{value:.5g}") if math.isfinite(value) else None


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
def measure_activations(net: Precond, batches: Iterable[ProbeBatch]) -> dict[str, Any]:
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


def measure_weights(net: nn.Module) -> dict[str, Buckets]:
    """M[w_i] = sqrt(mean_j w_ij²) per output unit of the stored weights in the blocks, biases and gains left out.

    Weights that are normalized where they are used are measured as they are stored: forced weight normalization keeps
    them at 1, and without it (config D) they grow. Their average over a profile is shorter, the more they turn.

    Returns:
        {"max": ..., "mean": ...} over the output units of each bucket.
    """
    return largest_and_mean((layer.bucket, magnitude_per_unit(layer.weight)) for layer in block_layers(net))
