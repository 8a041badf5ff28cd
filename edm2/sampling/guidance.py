"""Guidance: push samples away from what a weaker denoiser would do.

Classifier-free guidance (arXiv 2207.12598), autoguidance (arXiv 2406.02507) and guidance intervals (arXiv 2404.07724)
are one idea. They differ in who the guide is, and at which noise levels it is heard:

    guided(net, unconditional_net, 1.4)        classifier-free, by a network without classes
    guided(net, without_labels(net), 1.4)      classifier-free, by the network itself: one batch of twice the size
    guided(net, smaller_or_earlier_net, 2.1)   autoguidance
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edm2.sampling.samplers.heun import Denoiser, denoiser_at_step, sigma_steps

ROUNDING = 1 + 1e-5
"""Levels this close are the same one: float32 rounds the solver's by 1e-6, those of 1000 steps are 5e-3 apart."""

Interval = tuple[float, float]
"""Noise levels (low, high], open below and closed above."""

EVERYWHERE: Interval = (0, math.inf)

BothDenoised = Callable[[Tensor, Tensor, "Tensor | None"], tuple[Tensor, Tensor]]
"""evaluate(x, sigma, labels) -> (D_main, D_guide)."""


def guided(main: Denoiser, guide: Denoiser, weight: float, interval: Interval = EVERYWHERE) -> "GuidedDenoiser":
    """Denoiser D = D_guide + weight (D_main - D_guide), within an interval of noise levels.

    Args:
        main: Denoiser to be guided.
        guide: Denoiser to move away from; it gets the same labels. `without_labels(main)` is evaluated together with
            `main`, as one batch of twice the size.
        weight: 1 is no guidance, and costs no evaluation of the guide; 0 is the guide alone.
        interval: (low, high]: noise levels with guidance; elsewhere the weight is 1. A sampler asks once per step,
            with the level where the step begins.

    Raises:
        ValueError: the interval is upside down.
    """
    return GuidedDenoiser(main, guide, weight, interval)


def without_labels(denoiser: Denoiser) -> "WithoutLabels":
    """The same denoiser, never told a label.

    A network knows what to do without one if it was trained so for a share of the images (`--label-dropout`).
    """
    return WithoutLabels(denoiser)


def interval_of_steps(first: int, end: int, num_steps: int = 32) -> Interval:
    """The interval that holds steps first, first + 1, ..., end - 1 of a solver with `num_steps` steps, and no other.

    Steps count from 0, at the highest noise level. Published intervals were found so (arXiv 2404.07724, Table 1), and
    printed in two digits, which are not always enough to tell which steps are meant.

    Raises:
        ValueError: the solver has no such steps.
    """
    if not 0 <= first < end <= num_steps:
        raise ValueError(f"steps {first} to {end} (exclusive) are none of a solver's with {num_steps} steps")
    levels = sigma_steps(num_steps, dtype=torch.float64)
    return levels[end].item(), levels[first].item()


class WithoutLabels:
    """See `without_labels`."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def at_step(self, sigma: Tensor | float) -> Denoiser:
        """The denoiser for a solver step that begins at `sigma`."""
        return WithoutLabels(denoiser_at_step(self.denoiser, sigma))

    def changes_between(self, sigma: float, other: float) -> bool:
        """Whether solver steps that begin at these two levels have different denoisers."""
        return changes_between(self.denoiser, sigma, other)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x; sigma); `labels` are dropped."""
        return self.denoiser(x, sigma, None)


class GuidedDenoiser:
    """See `guided`."""

    def __init__(self, main: Denoiser, guide: Denoiser, weight: float, interval: Interval) -> None:
        low, high = interval
        if not 0 <= low < high:
            raise ValueError(f"guidance interval ({low}, {high}] must satisfy 0 <= low < high")
        self.main = main
        self.guide = guide
        self.weight = weight
        self.interval = interval

    def at_step(self, sigma: Tensor | float) -> Denoiser:
        """The denoiser for a solver step that begins at `sigma`; its weight is constant within the step."""
        main = denoiser_at_step(self.main, sigma)
        if self.weight == 1 or not self._hears_the_guide(float(sigma)):
            return main
        if self.weight == 0:
            return denoiser_at_step(self.guide, sigma)
        if isinstance(self.guide, WithoutLabels) and self.guide.denoiser is self.main:
            return _blended(_in_one_batch(main), self.weight)
        return _blended(_one_after_the_other(main, denoiser_at_step(self.guide, sigma)), self.weight)

    def changes_between(self, sigma: float, other: float) -> bool:
        """Whether solver steps that begin at these two levels have different denoisers: one inside the interval."""
        if self.weight != 1 and self._hears_the_guide(sigma) != self._hears_the_guide(other):
            return True
        return any(changes_between(denoiser, sigma, other) for denoiser in (self.main, self.guide))

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x; sigma), the weight chosen for this very sigma."""
        return self.at_step(sigma)(x, sigma, labels)

    def _hears_the_guide(self, sigma: float) -> bool:
        low, high = self.interval
        return low * ROUNDING < sigma <= high * ROUNDING


def changes_between(denoiser: Denoiser, sigma: float, other: float) -> bool:
    """Whether `denoiser` jumps between steps that begin at these two levels: what it says itself, if it has a say."""
    return hasattr(denoiser, "changes_between") and denoiser.changes_between(sigma, other)


def _blended(evaluate: BothDenoised, weight: float) -> Denoiser:
    """D = D_guide + weight (D_main - D_guide)."""

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        from_main, from_guide = evaluate(x, sigma, labels)
        return from_guide.lerp(from_main, weight)

    return denoise


def _one_after_the_other(main: Denoiser, guide: Denoiser) -> BothDenoised:
    """Two evaluations."""
    return lambda x, sigma, labels: (main(x, sigma, labels), guide(x, sigma, labels))


def _in_one_batch(denoiser: Denoiser) -> BothDenoised:
    """One evaluation of the images with their labels, followed by the same images without; fills a GPU better."""

    def evaluate(x: Tensor, sigma: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        if labels is None:  # with and without are the same
            D_x = denoiser(x, sigma, None)
            return D_x, D_x
        D_x = denoiser(torch.cat([x, x]), sigma, torch.cat([labels, _missing(labels)]))
        from_main, from_guide = D_x.chunk(2)
        return from_main, from_guide

    return evaluate


def _missing(labels: Tensor) -> Tensor:
    """No label for any image, in the form of `labels`: -1 for int64 [N], zeros for one-hot [N, label_dim]."""
    return torch.full_like(labels, -1) if labels.ndim == 1 else torch.zeros_like(labels)
