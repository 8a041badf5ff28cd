"""Heun's method, and the jumps of a flow map, in the steps of diffusers."""

from collections.abc import Mapping, Sequence

import torch
from diffusers import ConfigMixin, SchedulerMixin  # diffusers looks for SchedulerMixin here when it loads a folder
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from edm2.networks.precond import MAP_LEVELS
from edm2.sampling.samplers.flow_map import levels_for
from edm2.sampling.samplers.heun import sigma_steps


class EDM2HeunScheduler(SchedulerMixin, ConfigMixin):
    """`edm2.sample_heun` without churn (EDM's Algorithm 2, arXiv 2206.00364), to the bit, one evaluation at a time.

    A step from t to t' takes two evaluations of the denoiser, at t and at t' (the last one, to 0, takes one):

        d  = (x - D(x; t)) / t              x_euler = x + (t' - t) d
        d' = (x_euler - D(x_euler; t')) / t'     x' = x + (t' - t) (d + d') / 2

    `sigmas` and `timesteps` (c_noise = ln(sigma) / 4) list the evaluations; `step` takes the denoised image D.

    Args:
        sigma_min, sigma_max, rho: See `edm2.sigma_steps`.
    """

    order = 2  # evaluations per step
    _compatibles = ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]  # noqa: RUF012, as diffusers has it

    @register_to_config
    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        self.num_inference_steps: int | None = None
        self.step_index: int | None = None

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise to start from."""
        return self.config.sigma_max

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Start again, with this number of steps.

        Raises:
            ValueError: as `edm2.sigma_steps`.
        """
        t = sigma_steps(
            num_inference_steps, self.config.sigma_min, self.config.sigma_max, self.config.rho, device=device
        )
        self.sigmas = torch.cat([t[:1], t[1:-1].repeat_interleave(2), t[-1:]])
        self.timesteps = self.sigmas[:-1].log() / 4
        self.num_inference_steps = num_inference_steps
        self.step_index = 0

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the sample as it is: the denoiser scales it by itself."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Advance by one evaluation.

        Args:
            model_output: D(sample; sigma), denoised.
            timestep: Not used: evaluations follow one another.
            sample: Input of the denoiser.
            generator: Not used: the method is deterministic.
            return_dict: Return a `SchedulerOutput` in place of a tuple.

        Raises:
            ValueError: `set_timesteps` has not been called.
        """
        index = self.step_index
        if index is None:
            raise ValueError("call set_timesteps before step")
        advance = self._correction if index % 2 else self._euler_step
        x_next = advance(sample, model_output, index)
        self.step_index = index + 1
        return SchedulerOutput(x_next) if return_dict else (x_next,)

    def _euler_step(self, x: Tensor, denoised: Tensor, index: int) -> Tensor:
        t, t_next = self.sigmas[index : index + 2]
        d = (x - denoised) / t
        self._begun = x, d
        return x + (t_next - t) * d

    def _correction(self, x_euler: Tensor, denoised: Tensor, index: int) -> Tensor:
        t, t_next = self.sigmas[index - 1 : index + 1]
        x, d = self._begun
        d_next = (x_euler - denoised) / t_next
        return x + (t_next - t) * (d + d_next) / 2


class EDM2MapScheduler(SchedulerMixin, ConfigMixin):
    """`edm2.sample_map` to the bit, one evaluation at a time: x <- (s/t) x + (1 - s/t) D(x; t, s) from each level t.

    Args:
        map_levels: Noise levels by number of evaluations; numbers may be texts, as JSON has them.
    """

    order = 1  # evaluations per step

    @register_to_config
    def __init__(self, map_levels: Mapping[str, Sequence[float]] | None = None) -> None:
        self.step_index: int | None = None

    @property
    def known_levels(self) -> dict[int, Sequence[float]]:
        """Noise levels by number of evaluations."""
        stored = self.config.map_levels or MAP_LEVELS
        return {int(steps): levels for steps, levels in stored.items()}

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Start again, with this number of evaluations.

        Raises:
            ValueError: there are no levels for it.
        """
        self.levels = levels_for(self.known_levels, num_inference_steps)
        self.sigmas = torch.tensor(self.levels, device=device)
        self.timesteps = self.sigmas[:-1].log() / 4
        self.step_index = 0

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the sample as it is: the network scales it by itself."""
        return sample

    @property
    def target_sigma(self) -> float:
        """Noise level that the next step arrives at, which the network is told."""
        return self.levels[(self.step_index or 0) + 1]

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Jump to the next level; arguments as of `EDM2HeunScheduler.step`, with model_output D(x; t, s).

        Raises:
            ValueError: `set_timesteps` has not been called.
        """
        if self.step_index is None:
            raise ValueError("call set_timesteps before step")
        q = self.target_sigma / self.levels[self.step_index]
        self.step_index += 1
        x_next = q * sample + (1 - q) * model_output
        return SchedulerOutput(x_next) if return_dict else (x_next,)
