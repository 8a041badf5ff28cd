"""The share of activations that are clipped (Appendix D.2)."""

from torch import Tensor, nn

from edm2.training.diagnostics.magnitudes import number


class ClippedShare:
    """The share of activations that leave a block at its bound."""

    def __init__(self) -> None:
        self.clipped = 0
        self.all = 0

    def hear(self, block: nn.Module, output: Tensor) -> None:
        """Take in the output of a block; one without a bound does not count."""
        bound = getattr(block, "clip_act", None)
        if bound is not None:
            self.clipped = self.clipped + (output.detach().abs() >= bound).sum()
            self.all += output.numel()

    @property
    def share(self) -> float | None:
        """None if no block has a bound."""
        return number(int(self.clipped) / self.all) if self.all else None
