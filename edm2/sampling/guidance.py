"""Guidance: push samples away from those of a weaker denoiser, D = D_guide + w (D_main - D_guide).

Classifier-free guidance (arXiv 2207.12598), autoguidance (arXiv 2406.02507) and guidance intervals (arXiv 2404.07724)
are this formula with different guides, and different noise levels at which it is used:

    guided(net, unconditional_net, 1.4)        classifier-free, by a network without classes
    guided(net, without_labels(net), 1.4)      classifier-free, by the network itself: one batch of twice the size
    guided(net, smaller_or_earlier_net, 2.1)   autoguidance
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edm2.sampling.samplers.heun import Denoiser, denoiser_at_step, sigma_steps, with_conditions

ROUNDING = 1 + 1e-5
"""Levels within this factor are the same: float32 rounds them by 1e-6, and those of 1000 steps are 5e-3 apart."""

Interval = tuple[float, float]
"""Noise levels (low, high], open below and closed above."""

EVERYWHERE: Interval = (0, math.inf)


def guided(main: Denoiser, guide: Denoiser, weight: float, interval: Interval = EVERYWHERE) -> "GuidedDenoiser":
    """Denoiser D = D_guide + weight (D_main - D_guide), within an interval of noise levels.

    Args:
        main: Denoiser to be guided.
        guide: Denoiser to move away from; it gets the same labels. `without_labels(main)` is evaluated together with
            `main`, as one batch of twice the size.
        weight: 1 is no guidance, and costs no evaluation of the guide; 0 is the guide alone.
        interval: (low, high]: noise levels with guidance; elsewhere the weight is 1. Samplers decide once per step, by
            the level where the step begins.

    Raises:
        ValueError: low is not below high.
    """
    return GuidedDenoiser(main, guide, weight, interval)


def without_labels(denoiser: Denoiser) -> "WithoutLabels":
    """Drop all labels of a denoiser.

    A network needs to have been trained without labels on a fraction of the images (`--label-dropout`).
    """
    return WithoutLabels(denoiser)


def without_conditions(denoiser: Denoiser, names: Collection[str]) -> "WithoutConditions":
    """Drop the conditions of some names, so that the denoiser can guide one that has them; labels stay."""
    return WithoutConditions(denoiser, names)


def interval_of_steps(first: int, end: int, num_steps: int = 32) -> Interval:
    """Interval of noise levels that holds steps first, ..., end - 1 of a sampler with `num_steps` steps, and no other.

    Steps count from 0, at the highest noise level. Published intervals were found as steps (arXiv 2404.07724, Table 1)
    and printed with two digits, which do not always identify the steps.

    Raises:
        ValueError: the sampler has no such steps.
    """
    if not 0 <= first < end <= num_steps:
        raise ValueError(f"steps {first} to {end} (exclusive) do not exist in a sampler with {num_steps} steps")
    levels = sigma_steps(num_steps, dtype=torch.float64)
    return levels[end].item(), levels[first].item()


@dataclass(frozen=True)
class Wrapped(ABC):
    """Denoiser around another one, which it asks whatever depends on the step."""

    denoiser: Denoiser

    @abstractmethod
    def __call__(self, *args: Any, **options: Any) -> Tensor:
        """D(x; sigma)."""

    def at_step(self, sigma: Tensor | float) -> Denoiser:
        """Denoiser for a step that begins at `sigma`."""
        return dataclasses.replace(self, denoiser=denoiser_at_step(self.denoiser, sigma))

    def changes_between(self, sigma: float, other: float) -> bool:
        """True if steps that begin at these two levels have different denoisers."""
        return changes_between(self.denoiser, sigma, other)


class WithoutLabels(Wrapped):
    """Denoiser that `without_labels` returns."""

    def __call__(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, conditions: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """D(x; sigma), whatever the labels."""
        return with_conditions(self.denoiser, conditions)(x, sigma, None)


@dataclass(frozen=True)
class WithoutConditions(Wrapped):
    """Denoiser that `without_conditions` returns."""

    names: Collection[str]

    def __call__(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, conditions: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """D(x; sigma) without the conditions of these names. Raises ValueError if one of them is not given."""
        conditions = conditions or {}
        if unknown := set(self.names) - set(conditions):
            raise ValueError(f"conditions {', '.join(sorted(unknown))} cannot be dropped: they are not given")
        kept = {name: values for name, values in conditions.items() if name not in self.names}
        return with_conditions(self.denoiser, kept or None)(x, sigma, labels)


class GuidedDenoiser:
    """Denoiser that `guided` returns."""

    def __init__(self, main: Denoiser, guide: Denoiser, weight: float, interval: Interval) -> None:
        low, high = interval
        if not 0 <= low < high:
            raise ValueError(f"guidance interval ({low}, {high}] must satisfy 0 <= low < high")
        self.main = main
        self.guide = guide
        self.weight = weight
        self.interval = interval

    def at_step(self, sigma: Tensor | float) -> Denoiser:
        """Denoiser for a step that begins at `sigma`; its weight is constant within the step."""
        main = denoiser_at_step(self.main, sigma)
        if self.weight == 1 or not self._is_inside(float(sigma)):
            return main
        guide = denoiser_at_step(self.guide, sigma)
        if self.weight == 0:
            return guide
        return self._combined(main, guide, self.weight)

    def _combined(self, main: Denoiser, guide: Denoiser, weight: float | Tensor) -> Denoiser:
        """Denoiser D_guide + weight (D_main - D_guide), with one weight or one for each image, [N, 1, 1, 1]."""
        one_batch = isinstance(self.guide, WithoutLabels) and self.guide.denoiser is self.main

        def denoise(
            x: Tensor, sigma: Tensor, labels: Tensor | None = None, conditions: Mapping[str, Tensor] | None = None
        ) -> Tensor:
            if one_batch:
                D_main, D_guide = _with_and_without_labels(main, x, sigma, labels, conditions)
            else:
                D_main = with_conditions(main, conditions)(x, sigma, labels)
                D_guide = with_conditions(guide, conditions)(x, sigma, labels)
            return D_guide.lerp(D_main, weight.to(D_main) if isinstance(weight, Tensor) else weight)

        return denoise

    def changes_between(self, sigma: float, other: float) -> bool:
        """True if steps that begin at these two levels have different denoisers: one inside the interval, one not."""
        if self.weight != 1 and self._is_inside(sigma) != self._is_inside(other):
            return True
        return any(changes_between(denoiser, sigma, other) for denoiser in (self.main, self.guide))

    def __call__(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, conditions: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """D(x; sigma), with the weight of this very sigma; of levels [N] (or [N, 1, 1, 1]), each image with its own."""
        if isinstance(sigma, Tensor) and sigma.numel() > 1:
            weights = torch.where(self._is_inside(sigma), self.weight, 1.0).reshape(-1, 1, 1, 1)
            return self._combined(self.main, self.guide, weights)(x, sigma, labels, conditions)
        return with_conditions(self.at_step(sigma), conditions)(x, sigma, labels)

    def _is_inside(self, sigma: Any) -> Any:
        """True, of a number or of each element of a tensor, where there is guidance."""
        low, high = self.interval
        return (low * ROUNDING < sigma) & (sigma <= high * ROUNDING)


def changes_between(denoiser: Denoiser, sigma: float, other: float) -> bool:
    """True if `denoiser` jumps between steps that begin at these levels: delegates to its own method, if defined."""
    return hasattr(denoiser, "changes_between") and denoiser.changes_between(sigma, other)


def _with_and_without_labels(
    denoiser: Denoiser,
    x: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    conditions: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Evaluate the images with their labels and again without, in one batch, which fills a GPU better."""
    if labels is None:
        D_x = with_conditions(denoiser, conditions)(x, sigma, None)
        return D_x, D_x
    twice = None if conditions is None else {name: torch.cat([c, c]) for name, c in conditions.items()}
    # No label is -1 among integers [N], zeros among one-hot vectors [N, label_dim].
    none = torch.full_like(labels, -1) if labels.ndim == 1 else torch.zeros_like(labels)
    if isinstance(sigma, Tensor) and sigma.numel() > 1:  # a level per image
        sigma = torch.cat([sigma, sigma])
    D_x = with_conditions(denoiser, twice)(torch.cat([x, x]), sigma, torch.cat([labels, none]))  # [2 N, C, H, W]
    D_main, D_guide = D_x.chunk(2)
    return D_main, D_guide
