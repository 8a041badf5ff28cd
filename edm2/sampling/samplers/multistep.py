"""Loop of multistep samplers: evaluate once, remember, step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edm2.sampling.guidance import changes_between
from edm2.sampling.samplers.heun import Denoiser, denoiser_at_step, with_conditions

Past = Sequence[tuple[float, Tensor]]
"""Noise levels, and the value kept of the evaluation at each, the latest first."""


@dataclass(frozen=True)
class Multistep:
    """A sampler that extrapolates from earlier evaluations.

    Where guidance starts or ends, the denoiser jumps, and earlier evaluations predict nothing: the sampler then starts
    again without a past.
    """

    kept: Callable[[Tensor, Tensor, float], Tensor]
    """kept(x, D, t) -> value to keep of an evaluation D = D(x; t)."""
    advance: Callable[[Tensor, float, Past], Tensor]
    """advance(x, t_next, past) -> x at t_next, from x at the latest level of the past."""
    order: int
    """Number of evaluations that are kept."""
    corrected: Callable[[Tensor, Past], Tensor] | None = None
    """corrected(x, past) -> x at the latest level of the past, from x one step earlier: replaces the result of a step
    without a past as soon as the next evaluation is known. None up to order 2, which do not need it."""

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoiser,
        noise: Tensor,
        labels: Tensor | None,
        conditions: Mapping[str, Tensor] | None,
        t_steps: Tensor,
    ) -> Tensor:
        """Integrate from noise to data, one evaluation per step. The last step, to level 0, is Euler's: it ends at D.

        Args:
            denoise: As for `edm2.sample_heun`. If it has a method `changes_between(t, t_next)`, that is True if steps
                which begin at these levels have different denoisers.
            noise: Unit Gaussian noise [N, C, H, W].
            labels, conditions: Passed to `denoise` as they are.
            t_steps: Noise levels t_0 > ... > t_N = 0 (`edm2.sigma_steps`), in the dtype of the integration, on the CPU.

        Returns:
            Samples like `noise`, in that dtype.
        """
        levels = t_steps.tolist()  # on the CPU, so that no step waits for another device
        t_steps = t_steps.to(noise.device)

        def denoised(x: Tensor, i: int) -> Tensor:
            step_denoiser = with_conditions(denoiser_at_step(denoise, levels[i]), conditions)
            return step_denoiser(x, t_steps[i], labels).to(x.dtype)

        x = x_before = noise.to(t_steps.dtype) * t_steps[0]
        past: Past = []
        for i, t in enumerate(levels[:-2]):
            value = self.kept(x, denoised(x, i), t)
            if i > 0 and changes_between(denoise, levels[i - 1], t):
                past = []
            past = [(t, value), *past[: self.order - 1]]
            if self.corrected is not None and len(past) == 2:
                x = self.corrected(x_before, past)
            x_before, x = x, self.advance(x, levels[i + 1], past)
        return denoised(x, -2)


def slope(x: Tensor, D: Tensor, t: float) -> Tensor:
    """Slope d = dx/dt = (x - D) / t."""
    return (x - D) / t
