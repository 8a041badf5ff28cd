"""Guidance: push samples away from what a weaker denoiser would do.

Classifier-free guidance, autoguidance (arXiv 2406.02507) and guidance intervals (arXiv 2404.07724) are one idea: they
differ in who the guide is (the unconditional network, a smaller or less trained one) and at which levels it is heard.
"""

import math

from torch import Tensor

from edm2.sampling import Denoiser


def guided(
    main: Denoiser, guide: Denoiser, weight: float, interval: tuple[float, float] = (0, math.inf)
) -> "GuidedDenoiser":
    """Denoiser D = D_guide + weight (D_main - D_guide), within an interval of noise levels.

    Args:
        main: Denoiser to be guided.
        guide: Denoiser to move away from; it gets the same labels.
        weight: 1 is no guidance, and costs no evaluation of the guide; 0 is the guide alone.
        interval: (low, high]: noise levels with guidance; elsewhere the weight is 1.

    Raises:
        ValueError: the interval is upside down.
    """
    return GuidedDenoiser(main, guide, weight, interval)


class GuidedDenoiser:
    """See `guided`."""

    def __init__(self, main: Denoiser, guide: Denoiser, weight: float, interval: tuple[float, float]) -> None:
        low, high = interval
        if not 0 <= low < high:
            raise ValueError(f"guidance interval ({low}, {high}] must satisfy 0 <= low < high")
        self.main = main
        self.guide = guide
        self.weight = weight
        self.interval = interval

    def at_step(self, sigma: Tensor | float) -> Denoiser:
        """The denoiser for a solver step that begins at `sigma`; its weight is constant within the step."""
        low, high = self.interval
        inside = low < float(sigma) <= high
        return self._blend if inside and self.weight != 1 else self.main

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x; sigma), the weight chosen for this very sigma."""
        return self.at_step(sigma)(x, sigma, labels)

    def _blend(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        from_guide = self.guide(x, sigma, labels)
        if self.weight == 0:
            return from_guide
        return from_guide.lerp(self.main(x, sigma, labels), self.weight)
