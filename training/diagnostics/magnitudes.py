"""Magnitudes per feature, and their largest and mean value in each bucket (Appendix A.6, Figures 3 and 15)."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

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
