"""Relative update size and effective learning rate of every layer in one optimizer step (Section 2.3)."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edm2.training.diagnostics.layers import weight_layers
from edm2.training.diagnostics.magnitudes import Buckets, measure_weights, number


class UpdateWatch:
    """Compares the weights before and after one step of the optimizer; they are copied for this one step only.

    "Before" is after forced weight normalization: the weights that forward and backward pass have seen.

        relative update        ||w_after - w_before|| / ||w_before||
        effective rate         lr / rms(w_before)

    For a layer whose output depends on the direction of its weights only, the learning rate counts in relation to
    their magnitude: this is what forced weight normalization keeps in the schedule's hands.

    Attributes:
        weights: Magnitudes of the weights before the step, per bucket.
        updates: The numbers above, per layer and of all weights of a bucket together.
        seconds: What watching has cost.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.weights: dict[str, Buckets] = {}
        self.updates: dict[str, Any] = {}
        self.seconds = 0.0
        self._before: list[Tensor] = []

    @contextmanager
    def around(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Within the context, watch the optimizer's step."""
        hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._timed(self._remember)),
            optimizer.register_step_post_hook(lambda *_: self._timed(self._compare, optimizer.param_groups[0]["lr"])),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _timed(self, act: Callable[..., None], *arguments: float) -> None:
        start = time.perf_counter()
        act(*arguments)
        self.seconds += time.perf_counter() - start

    def _remember(self) -> None:
        self.weights = measure_weights(self.net)
        self._before = [layer.weight.clone() for layer in weight_layers(self.net)]

    def _compare(self, lr: float) -> None:
        layers = weight_layers(self.net)
        norms = torch.stack([before.norm() for before in self._before])
        steps = torch.stack([(layer.weight - w).norm() for layer, w in zip(layers, self._before, strict=True)])
        sizes = torch.tensor([layer.weight.numel() for layer in layers], device=norms.device)
        squares = torch.stack([steps.square(), norms.square(), sizes]).tolist()
        self._before = []
        by_layer: dict[str, list[float]] = {}
        by_bucket: dict[str, list[float]] = {}
        for layer, *numbers in zip(layers, *squares, strict=True):
            by_layer[layer.name] = numbers
            if layer.bucket is not None:
                sums = by_bucket.get(layer.bucket, [0.0] * 3)
                by_bucket[layer.bucket] = [a + b for a, b in zip(sums, numbers, strict=True)]
        self.updates = {
            "lr": number(lr),
            **_relative_and_effective(by_bucket, lr),
            "layers": _relative_and_effective(by_layer, lr),
        }


def _relative_and_effective(squares: Mapping[str, Sequence[float]], lr: float) -> dict[str, Buckets]:
    """From ||dw||², ||w||² and the number of weights; None for weights that are zero."""
    return {
        "relative": {name: _root(dw2, w2) for name, (dw2, w2, _) in squares.items()},
        "effective_lr": {name: _root(lr**2 * count, w2) for name, (_, w2, count) in squares.items()},
    }


def _root(numerator: float, denominator: float) -> float | None:
    return number(math.sqrt(numerator / denominator)) if denominator > 0 else None
