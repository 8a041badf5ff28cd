"""Relative update and effective learning rate of every layer in one optimizer step (Section 2.3)."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edm2.training.diagnostics.layers import weight_layers
from edm2.training.diagnostics.magnitudes import Buckets, measure_weights, number


@dataclass
class UpdateRecord:
    """Measurements of one step of the optimizer."""

    weights: dict[str, Buckets] = field(default_factory=dict)
    """Magnitudes of the weights before the step, per bucket."""
    updates: dict[str, Any] = field(default_factory=dict)
    """Learning rate, relative update and effective learning rate, per layer and per bucket."""
    seconds: float = 0.0
    """Time that measuring took."""


@contextmanager
def measure_update(net: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[UpdateRecord]:
    """Within the context, compare the weights before and after the optimizer's step; yields the record to be filled.

    Weights are copied for this one step only. "Before" is after forced weight normalization, so these are the weights
    of forward and backward pass.

        relative update        ||w_after - w_before|| / ||w_before||
        effective rate         lr / rms(w_before)

    If the output of a layer depends on the direction of its weights only, the learning rate counts in relation to
    their magnitude: forced weight normalization leaves it to the schedule.
    """
    record = UpdateRecord()
    before: list[Tensor] = []

    def copy_weights(*_: Any) -> None:
        start = time.perf_counter()
        record.weights = measure_weights(net)
        before.extend(layer.weight.clone() for layer in weight_layers(net))
        record.seconds += time.perf_counter() - start

    def compare_weights(*_: Any) -> None:
        start = time.perf_counter()
        record.updates = _updates(net, before, optimizer.param_groups[0]["lr"])
        before.clear()
        record.seconds += time.perf_counter() - start

    hooks = [optimizer.register_step_pre_hook(copy_weights), optimizer.register_step_post_hook(compare_weights)]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def _updates(net: nn.Module, before: Sequence[Tensor], lr: float) -> dict[str, Any]:
    layers = weight_layers(net)
    norms = torch.stack([weight.norm() for weight in before])
    steps = torch.stack([(layer.weight - weight).norm() for layer, weight in zip(layers, before, strict=True)])
    sizes = torch.tensor([weight.numel() for weight in before], device=norms.device)
    squares = torch.stack([steps.square(), norms.square(), sizes]).tolist()
    by_layer: dict[str, list[float]] = {}
    by_bucket: dict[str, list[float]] = {}
    for layer, *numbers in zip(layers, *squares, strict=True):
        by_layer[layer.name] = numbers
        if layer.bucket is not None:
            sums = by_bucket.get(layer.bucket, [0.0] * 3)
            by_bucket[layer.bucket] = [a + b for a, b in zip(sums, numbers, strict=True)]
    return {
        "lr": number(lr),
        **_relative_and_effective(by_bucket, lr),
        "layers": _relative_and_effective(by_layer, lr),
    }


def _relative_and_effective(squares: Mapping[str, Sequence[float]], lr: float) -> dict[str, Buckets]:
    """Both rates from ||dw||², ||w||² and the number of weights; None for weights that are zero."""
    return {
        "relative": {name: _root(dw2, w2) for name, (dw2, w2, _) in squares.items()},
        "effective_lr": {name: _root(lr**2 * count, w2) for name, (_, w2, count) in squares.items()},
    }


def _root(numerator: float, denominator: float) -> float | None:
    return number(math.sqrt(numerator / denominator)) if denominator > 0 else None
