"""Sums over the steps between two reports, on the device: no step has to wait for a number."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class StepResult(NamedTuple):
    """Measurements of one optimizer step; 0-dimensional tensors on the device."""

    loss: Tensor
    """Sum over elements of the loss, mean over the images that this rank saw of the step."""
    grad_norm: Tensor
    """L2 norm of all gradients, after non-finite entries were set to zero."""
    nonfinite: Tensor
    """1 if any gradient entry was NaN or infinite, else 0 (int64)."""
    error: Tensor | None = None
    """Error of this rank's images on the raw output; None if the loss has none."""
    error_of_zero: Tensor | None = None
    """Error of a network whose output is zero on the same images; None: 1."""
    reported: dict[str, Tensor] = {}  # noqa: RUF012
    """Further numbers that the loss reports, means over this rank's images."""


class Totals:
    """Sums over the steps since the last report.

    Args:
        reports: Names of what the loss reports.
    """

    def __init__(self, device: torch.device, reports: Sequence[str] = ()) -> None:
        self.loss = torch.zeros((), device=device)
        self.error = torch.zeros((), device=device)
        self.error_of_zero = torch.zeros((), device=device)
        self.grad_norm = torch.zeros((), device=device)
        self.nonfinite_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.nonfinite_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = torch.zeros((), dtype=torch.int64)
        self.reported = {name: torch.zeros((), device=device) for name in reports}

    def add(self, step: StepResult) -> None:
        self.loss += step.loss
        if step.error is not None:
            self.error += step.error
            self.error_of_zero += 1 if step.error_of_zero is None else step.error_of_zero
        self.grad_norm += step.grad_norm
        self.nonfinite_steps += step.nonfinite
        self.nonfinite_in_a_row.add_(1).mul_(step.nonfinite)
        self.steps += 1
        for name, value in step.reported.items():
            if name not in self.reported:
                raise ValueError(f"the loss reports {name!r}, which its attribute `reports` does not name")
            self.reported[name] += value

    def average_over_ranks(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Replace what ranks saw of their own images by the mean over them; the rest is the same in all anyway."""
        for total in (self.loss, self.error, self.error_of_zero, *self.reported.values()):
            total.copy_(mean(total))

    def averages(self) -> dict[str, float | int]:
        """Averages since the last report; the error is left out where the loss has none. Waits for the device."""
        steps = max(int(self.steps), 1)
        of_zero = float(self.error_of_zero)
        return {
            "loss": float(self.loss) / steps,
            **({"error": float(self.error) / of_zero} if of_zero else {}),
            "grad_norm": float(self.grad_norm) / steps,
            "nonfinite_steps": int(self.nonfinite_steps),
            **{name: float(total) / steps for name, total in self.reported.items()},
        }

    def restart(self) -> None:
        """Begin anew, after a report."""
        for name, total in self.state_dict().items():
            if name != "nonfinite_in_a_row":
                total.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The sums themselves, to be stored or filled in place."""
        own = {name: value for name, value in vars(self).items() if name != "reported"}
        return {**own, **{f"reported.{name}": total for name, total in self.reported.items()}}
