"""Samplers by name, and their cost. Samplers are imported on first use, so that the command line starts fast."""

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


FEW = 12
"""Evaluations below which the solvers draw badly: 8 of DEIS had half as much distance again as 12 on 32x32 emoji."""


@dataclass(frozen=True)
class Sampler:
    """Entry of a function of the form of `edm2.sample_heun`."""

    name: str
    """Name on the command line; the function is called sample_{name}."""
    module: str
    """Module that defines the function."""
    evaluations_per_step: int = 1
    """Evaluations of the denoiser in every step but the last, which takes one."""
    churns: bool = False
    """True if the function takes S_churn."""

    @property
    def sample(self) -> "Callable[..., Tensor]":
        """The function itself."""
        return getattr(importlib.import_module(self.module), f"sample_{self.name}")

    def evaluations(self, num_steps: int) -> int:
        """Number of evaluations of the denoiser per image."""
        return self.evaluations_per_step * (num_steps - 1) + 1

    def cost(self, num_steps: int) -> str:
        """Number of evaluations as text: "63 evaluations each, heun"."""
        count = self.evaluations(num_steps)
        return f"{count} evaluation{'s' if count > 1 else ''} each, {self.name}"

    def advice(self, num_steps: int) -> str | None:
        """Warning of too few evaluations for a solver; None if they are enough, or the jumps of a flow map."""
        count = self.evaluations(num_steps)
        if self == MAP or count >= FEW:
            return None
        return (
            f"Warning: {count} evaluation{'s are' if count > 1 else ' is'} few for a denoiser: take --solver deis "
            "--steps 16, or distil a map that needs 1 to 4 (edm2 distill)"
        )


HEUN = Sampler("heun", "edm2.sampling.samplers.heun", evaluations_per_step=2, churns=True)
MAP = Sampler("map", "edm2.sampling.samplers.flow_map")
"""Jumps of a flow map, which solve nothing: for distilled networks only, so not one of the `SAMPLERS`."""

SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        HEUN,
        Sampler("deis", "edm2.sampling.samplers.deis"),
        Sampler("dpmpp_2m", "edm2.sampling.samplers.dpmpp"),
        Sampler("euler", "edm2.sampling.samplers.euler"),
    )
}
"""Registry, from which `--solver` takes its names: a new sampler is one file and one entry."""


def default_sampler(abilities: Collection[str]) -> Sampler:
    """Sampler of a network with these abilities (of `edm2.networks.precond.ABILITIES`), if none is asked for."""
    return MAP if {"map", "consistency"} & set(abilities) else HEUN


def default_steps(sampler: Sampler, abilities: Collection[str] = ("map",)) -> int:
    """Steps of a sampler, if none are asked for; a network without the ability `map` jumps once."""
    if sampler != MAP:
        return 32
    return 2 if "map" in abilities else 1
