"""Magnitudes per feature, and their maximum and mean in each bucket (Appendix A.6, Figures 3 and 15)."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edm2.networks import Precond
from edm2.training.diagnostics.batches import ProbeBatch
from edm2.training.diagnostics.layers import block_layers, output_hooks

Buckets = dict[str, "float | None"]
"""A number for each bucket, such as "Enc 8x8"; None where it is not finite."""


@torch.no_grad()
def measure_activations(net: Precond, probes: Iterable[ProbeBatch]) -> dict[str, Any]:
    """M[h_i] = sqrt(mean_j h_ij²) of each feature i in the blocks, over images and pixels j.

    Features are outputs of layers with trainable weights, bias and gain included, before any nonlinearity.

    Args:
        net: Network in evaluation mode; the paper measures averaged weights.
        probes: Training images at the noise levels of training.

    Returns:
        {"max": ..., "mean": ..., "images": ...}: the maximum and the mean over the features of each bucket.
    """
    layers = block_layers(net)
    squares: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def add(layer: nn.Module, output: Tensor) -> None:
        squares[layer] = squares.get(layer, 0) + sum_of_squares(output)
        counts[layer] = counts.get(layer, 0) + output.numel() // output.shape[1]

    images = 0
    with output_hooks([layer.module for layer in layers], add):
        for probe in probes:
            net(probe.noisy, probe.sigma, probe.batch.labels, **probe.batch.given)
            images += len(probe.sigma)
    magnitudes = [(layer.bucket, (squares[layer.module] / counts[layer.module]).sqrt()) for layer in layers]
    return max_and_mean(magnitudes) | {"images": images}


def measure_weights(net: nn.Module) -> dict[str, Buckets]:
    """M[w_i] = sqrt(mean_j w_ij²) per output unit i of the stored weights in the blocks, without biases and gains.

    Weights that are normalized on use are measured as they are stored: forced weight normalization keeps them at 1,
    and without it (config D) they grow. Their average over a profile is shorter, the more they turn.

    Returns:
        {"max": ..., "mean": ...} over the output units of each bucket.
    """
    layers = block_layers(net)
    return max_and_mean((layer.bucket, layer.weight.flatten(1).square().mean(1).sqrt()) for layer in layers)


def sum_of_squares(x: Tensor) -> Tensor:
    """Sum of squares of each feature of [N, C] or [N, C, H, W], over images and pixels: [C], at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.ndim > 2:  # pixels first: on a CPU several times as fast as all at once
        x = torch.linalg.vector_norm(x.flatten(2), dim=2, dtype=dtype)
    return x.to(dtype).square().sum(0)


def max_and_mean(magnitudes: Iterable[tuple[str | None, Tensor]]) -> dict[str, Buckets]:
    """{"max": ..., "mean": ...} over all features of a bucket, from (bucket, magnitudes of the features of a layer)."""
    collected: dict[str, list[Tensor]] = {}
    for bucket, values in magnitudes:
        if bucket is not None:
            collected.setdefault(bucket, []).append(values.float())
    joined = {bucket: torch.cat(values) for bucket, values in collected.items()}
    return {
        "max": {bucket: number(values.max()) for bucket, values in joined.items()},
        "mean": {bucket: number(values.mean()) for bucket, values in joined.items()},
    }


def number(value: "Tensor | float") -> float | None:
    """Five digits, which suffice for a record; None for NaN and infinity, which JSON has not."""
    value = float(value)
    return float(f"{value:.5g}") if math.isfinite(value) else None
