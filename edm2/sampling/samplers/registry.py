"""Solvers by name, and what they cost; imports no solver before it is used, for the sake of the command line."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Solver:
    """A function of the form of `edm2.sample_heun`, by name."""

    name: str
    """The function is called sample_{name}."""
    module: str
    """Where it lives."""
    evaluations_per_step: int = 1
    """Of the denoiser; but one in the last step, to noise level 0."""
    churns: bool = False
    """Whether it can add fresh noise (S_churn)."""

    @property
    def sample(self) -> "Callable[..., Tensor]":
        """The function."""
        return getattr(importlib.import_module(self.module), f"sample_{self.name}")

    def evaluations(self, num_steps: int) -> int:
        """How often an image is denoised in so many steps."""
        return self.evaluations_per_step * (num_steps - 1) + 1

    def cost(self, num_steps: int) -> str:
        """The same for people: "63 evaluations each, heun"."""
        count = self.evaluations(num_steps)
        return f"{count} evaluation{'s' if count > 1 else ''} each, {self.name}"


HEUN = Solver("heun", "edm2.sampling.samplers.heun", evaluations_per_step=2, churns=True)

SOLVERS = {
    solver.name: solver
    for solver in (
        HEUN,
        Solver("deis", "edm2.sampling.samplers.deis"),
        Solver("dpmpp_2m", "edm2.sampling.samplers.dpmpp"),
        Solver("euler", "edm2.sampling.samplers.euler"),
    )
}
