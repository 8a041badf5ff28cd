"""TraditionalEMA: the average that EDM kept, of a fixed half-life (arXiv 2312.02696v2, Appendix B.1 and C)."""

from torch import Tensor, nn

from edm2.post_hoc_ema.conversions import half_life_to_beta, half_life_to_sigma_rel, rampup_ratio_to_sigma_rel
from edm2.post_hoc_ema.parameter_averages import ParameterAverages


class TraditionalEMA(ParameterAverages):
    """An average whose half-life is constant, but for a ramp-up while the run is short.

        θ̂ <- β θ̂ + (1 - β) θ,    β = 2^(-dt / min(λ, r t))

    As long as r t < λ it is a power-function average in disguise, of the width `rampup_ratio_to_sigma_rel(r)`: 0.063
    of the run for EDM's r = 0.05. Nothing can be reconstructed from it: it is here as the baseline (config A).
    """

    def __init__(self, module: nn.Module, half_life: int, rampup_ratio: float = 0.05) -> None:
        """Start with zero images seen; until the first update the average is a copy of the parameters.

        Args:
            module: Any; it is held, not copied.
            half_life: λ in images.
            rampup_ratio: r; how much of the images seen the half-life may be.

        Raises:
            ValueError: A value is not positive, or there is nothing to average.
        """
        if not half_life > 0 or not rampup_ratio > 0:
            raise ValueError(f"half_life={half_life} and rampup_ratio={rampup_ratio} must be positive")
        self._rampup_ratio = rampup_ratio
        super().__init__(module, [half_life])

    @property
    def sigma_rel(self) -> float:
        """Width of the profile at the last update, as a share of the images seen."""
        [half_life] = self._averages
        if self._rampup_ratio * self._images_seen <= half_life:
            return float(rampup_ratio_to_sigma_rel(self._rampup_ratio))
        return float(half_life_to_sigma_rel(half_life, self._images_seen))

    def average(self) -> dict[str, Tensor]:
        """A state dict of the module, with averages for its parameters and copies of its buffers."""
        [half_life] = self._averages
        return self._average(half_life)

    def _share(self, length: float, t: int, dt: int) -> float:
        """1 - β above."""
        return float(1 - half_life_to_beta(min(length, self._rampup_ratio * t), dt))
