"""What a run adds up between two reports, on the device: no step has to wait for a number."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class StepResult(NamedTuple):
    """What one optimizer step was like; 0-dimensional tensors on the device."""

    loss: Tensor
    """Sum over elements of the loss, divided by the images: those that this process saw of the step."""
    grad_norm: Tensor
    """L2 norm of all gradients, after non-finite entries were set to zero."""
    nonfinite: Tensor
    """1 if any gradient entry was NaN or infinite, else 0 (int64)."""
    error: Tensor
    """Error of the images that this process saw, relative to that of a network whose output is zero."""


class Totals:
    """Sums over the steps since the last report."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.grad_norm = torch.zeros((), device=device)
        self.nonfinite_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.nonfinite_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = torch.zeros((), dtype=torch.int64)

    def add(self, step: StepResult) -> None:
        """Take in one step."""
        self.loss += step.loss
        self.grad_norm += step.grad_norm
        self.nonfinite_steps += step.nonfinite
        self.nonfinite_in_a_row.add_(1).mul_(step.nonfinite)
        self.steps += 1

    def average_over_ranks(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Let the loss be the mean over all processes; everything else is the same in all of them anyway."""
        self.loss.copy_(mean(self.loss))

    def averages(self) -> dict[str, float | int]:
        """Averages since the last report, which start anew. Waits for the device."""
        steps = max(int(self.steps), 1)
        values = {
            "loss": float(self.loss) / steps,
            "grad_norm": float(self.grad_norm) / steps,
            "nonfinite_steps": int(self.nonfinite_steps),
        }
        for total in (self.loss, self.grad_norm, self.nonfinite_steps, self.steps):
            total.zero_()
        return values

    def state_dict(self) -> dict[str, Tensor]:
        """The sums themselves, to be stored or filled in place."""
        return dict(vars(self))
