"""Telling a loss that explodes from one that is merely high.

Losses of different weightings cannot be compared: learned uncertainty makes them negative, others make them huge. What
can be is the error on the network's raw output F, relative to that of a network whose output is F = 0:

    E[lambda (D - y)²] / E[lambda (c_skip x - y)²],    lambda of Eq. 16

It is 1 at the start of most runs, whatever the data, and falls from there. Config F starts at 8, so "high" is counted
from where a run started. High learning rates let it jump by a factor of 100,000 for some dozens of steps and come
back, so a run is given up only when it stays high.
"""

from typing import Any

import torch
from torch import Tensor

EXPLODED = 10.0
"""Times the error at the start (1 at least) beyond which a step counts as exploded."""

SUSPECT = 2.0
"""Likewise, beyond which what is saved may be bad already, so nothing that is good should be removed for it."""

STEPS = 256
"""Exploded steps in a row after which there is no hope."""


class Explosion:
    """Watches the relative error of every step, on the device: no step waits for it.

    Args:
        device: Where the errors are.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = torch.zeros((), device=device)
        self._usual = torch.zeros((), device=device)
        self._last = torch.zeros((), device=device)

    def add(self, error: Tensor) -> None:
        """Take in the relative error of a step."""
        first = torch.where(error.isfinite(), error, 1).clamp(min=1)
        self._usual.copy_(torch.where(self._usual > 0, self._usual, first))
        self._last.copy_(error / self._usual)
        self.steps.add_(1).mul_(~(self._last <= EXPLODED))  # NaN counts

    def is_suspect(self) -> bool:
        """Whether the last step was bad. Waits for the device."""
        return not float(self._last) <= SUSPECT

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, and `good`: whether all is well."""
        return {"steps": float(self.steps), "usual": float(self._usual), "good": not self.is_suspect()}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Go on from `state`; None: as at the start."""
        if state is not None:
            self.steps.fill_(state["steps"])
            self._usual.fill_(state["usual"])
