"""PowerFunctionEMA: averages from which post-hoc EMA starts (arXiv 2312.02696v2, Section 3.1)."""

from collections.abc import Sequence

from torch import Tensor, nn

from edm2.post_hoc_ema.parameter_averages import ParameterAverages
from edm2.post_hoc_ema.profile import power_function_step, sigma_rel_to_gamma


class PowerFunctionEMA(ParameterAverages):
    """Power-function averages of a module's parameters, one per relative width.

        tracker = PowerFunctionEMA(net, sigma_rels=(0.05, 0.10))
        for images_seen in ...:
            ...                                     # optimizer.step()
            tracker.update(images_seen)             # after every step, or after every tenth
        weights = tracker.average(0.10)             # a state dict of `net`

    Averages live on the device of the parameters, in float32 at least (float64 for float64). Frozen parameters are
    averaged like any other, and those that torch shards (FSDP2) shard by shard. Where a step is less than a millionth
    of the run, float32 rounds away part of so small an update: call `update` every n steps then, which β allows for.
    Where memory on the GPU is short, the averages may live on the CPU (`offload`); an update then takes as long as the
    parameters need to get there, so one per ten steps or so is the price to pay.
    """

    def __init__(self, module: nn.Module, sigma_rels: Sequence[float] = (0.05, 0.10), *, offload: bool = False) -> None:
        """Start with zero images seen; until the first update an average is a copy of the parameters.

        Args:
            module: Any; it is held, not copied.
            sigma_rels: Relative widths.
            offload: Keep the averages on the CPU. Not for sharded parameters, which FSDP2 offloads itself.

        Raises:
            ValueError: Widths outside (0, 12^-0.5) or twice the same, nothing to average, or shards to offload.
        """
        self._sigma_rels = tuple(float(sigma_rel) for sigma_rel in sigma_rels)
        sigma_rel_to_gamma(self._sigma_rels)  # refuses impossible widths now, not after the first step
        if not self._sigma_rels or len(set(self._sigma_rels)) < len(self._sigma_rels):
            raise ValueError(f"sigma_rels={self._sigma_rels} must hold one width or more, each once")
        super().__init__(module, self._sigma_rels, offload)

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """Relative widths of the averages."""
        return self._sigma_rels

    def average(self, sigma_rel: float) -> dict[str, Tensor]:
        """A state dict of the module, with averages for its parameters and copies of its buffers.

        Tied parameters appear under each of their names and stay tied. The tensors are the caller's to keep, and lie
        where the parameters do.

        Raises:
            ValueError: No average of this width is tracked.
        """
        if sigma_rel not in self._averages:
            raise ValueError(f"sigma_rel={sigma_rel} is not tracked; tracked are {self._sigma_rels}")
        return self._average(sigma_rel)

    def _share(self, length: float, t: int, dt: int) -> float:
        """1 - β (Eq. 127); the first update gives the initial parameters no share (β = 0)."""
        return float(power_function_step(length, t, dt))
