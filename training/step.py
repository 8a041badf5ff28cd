"""One step of training (arXiv 2312.02696v2, Algorithm 1 with Eqs. 15, 21, 67 and 127)."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from edm2.networks import force_weight_normalization_
from edm2.post_hoc_ema import PowerFunctionEMA, TraditionalEMA
from edm2.training.accumulation import GradientAccumulation, Means, Part
from edm2.training.config import TrainingConfig
from edm2.training.data.batches import Batch
from edm2.training.distributed.processes import ONE_PROCESS, Processes
from edm2.training.distributed.strategies import choose_strategy
from edm2.training.draws import LossContext, NoiseDraws
from edm2.training.loss.pareto import Pareto
from edm2.training.pareto_updates import ParetoUpdates
from edm2.training.preparation import draws_random_numbers, prepare_
from edm2.training.randomness import PositionRandom
from edm2.training.run.totals import StepResult
from edm2.training.schedule import inverse_sqrt_lr
from edm2.training.settings import ScheduleConfig


class TrainStep:
    """A network with its loss, optimizer and averages, which a call takes one step further.

    Args:
        config: The run.
        net: Denoiser called as net(noisy, sigma, labels) -> D_x, on the CPU. A `Precond`, or any other module.
        loss: Called as loss(net, images, labels, sigma=, noise=, context=) -> [N, C, H, W], with `conditions=` too
            where batches have them; default: the objective of `config`. `context` is a `LossContext`.
        processes: Processes that train together.

    Attributes:
        net: The network as the optimizer sees it.
        denoiser: What the loss calls in its place: compiled, or with gradients that are exchanged among ranks.
        ema: Its power-function averages.
        draws: Noise levels and noise by position.
        images_seen: The clock.
        position: Position of the first image that went through the network last.

    Raises:
        ValueError: the batch cannot be split among the processes, or the settings do not fit the network.
    """

    def __init__(
        self,
        config: TrainingConfig,
        net: nn.Module,
        loss: Callable[..., Tensor] | None = None,
        processes: Processes = ONE_PROCESS,
    ) -> None:
        self.config = config
        self.processes = processes
        self.images_per_rank = config.images_per_rank(processes.count)
        self.images_seen = 0
        self.position = 0
        self.device = processes.device(config.device)
        objective = config.objective()
        self.loss: Any = objective if loss is None else loss  # any callable, with or without a state
        prepare_(net, config, self.loss, self.device)
        self.net: Any = net  # an `nn.Module`, ours or another
        self.buffers = [name for name, _ in net.named_buffers()]
        self.strategy = choose_strategy(processes, self.device, config.shard, timedelta(seconds=config.patience))
        self.denoiser = self.strategy.wrap(self.net, config.compile)
        self.optimizer = _adam(self.net, config, self.device)
        self.ema = PowerFunctionEMA(self.net, config.sigma_rels, watch=False)
        half_life = config.traditional_ema
        self.traditional_ema = None if half_life is None else TraditionalEMA(self.net, half_life)
        self.random = PositionRandom(config.seed, config.random_block, self.device)
        self.draws: Any = NoiseDraws(self.random, objective.distribution, config.batch_size, config.stratified_sigma)
        size = min(config.images_per_forward, self.images_per_rank)
        self.accumulation = GradientAccumulation(size, self.optimizer, self.strategy)
        weighting = getattr(self.loss, "weighting", None)
        self.pareto = (
            ParetoUpdates(weighting, self.net, self.draws, self.strategy) if isinstance(weighting, Pareto) else None
        )

    # ------------------------------------------------------------------------------------------------ Algorithm 1

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        """One optimizer step on `config.batch_size` images, of which this rank has `images_per_rank`.

        Args:
            batches: Micro-batches, on the device.

        Returns:
            Loss and gradients of the step, still on the device.
        """
        position = self.images_seen + self.processes.rank * self.images_per_rank
        force_weight_normalization_(self.net)  # once: all parts of a step see the same weights
        if self.pareto is not None:
            self.pareto(self.accumulation.split(batches, position), self.images_seen // self.config.batch_size)
        means = self.accumulation(batches, position, self._backward)
        grad_norm, nonfinite = self.strategy.clean_gradients_(self.net)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()  # of the images seen before this step
        self.optimizer.step()
        self.images_seen += self.config.batch_size
        for average in self.averages().values():
            average.update(self.images_seen)
        loss, error, of_zero = means.pop("loss"), means.pop("error", None), means.pop("error_of_zero", None)
        return StepResult(loss, grad_norm / self.config.loss_scale, nonfinite, error, of_zero, reported=means)

    def _backward(self, part: Part) -> Means:
        """Draw sigma and noise, denoise, and add the gradient of the loss: a sum over elements, a mean over images."""
        position, (images, labels, conditions) = part
        self.position = position
        sigma = self.draws.sigma(position, len(images))
        noise = self.draws.noise(position, images.shape)
        if draws_random_numbers(self.config):
            self.draws.seed_dropout(position)
        means: Means = {}
        fraction = len(images) / self.images_per_rank
        context = LossContext(
            self.images_seen,
            range(position, position + len(images)),
            self.random,
            lambda name, value: means.update({name: value.detach() * fraction}),
        )
        given = {} if conditions is None else {"conditions": conditions}
        losses = self.loss(self.denoiser, images, labels, sigma=sigma, noise=noise, context=context, **given)
        loss = losses.sum() / self.images_per_rank
        (loss * self.config.loss_scale).backward()
        return {"loss": loss.detach(), **means}

    def learning_rate(self) -> float:
        """Learning rate of the step that comes next (Eq. 67)."""
        c = self.config
        return inverse_sqrt_lr(
            self.images_seen,
            c.batch_size,
            c.ref_lr,
            c.ref_batches,
            c.rampup_images,
            c.cooldown_images,
            c.duration,
        )

    def averages(self) -> dict[str, PowerFunctionEMA | TraditionalEMA]:
        """Averages of the weights, by their names in a checkpoint."""
        traditional = {} if self.traditional_ema is None else {"traditional_ema": self.traditional_ema}
        return {"ema": self.ema, **traditional}

    @property
    def images_per_forward(self) -> int:
        """Images that go through the network at once; fewer than configured after memory ran out."""
        return self.accumulation.images_per_forward


def _adam(net: nn.Module, config: ScheduleConfig, device: torch.device) -> torch.optim.Optimizer:
    """Adam. Scalars are a group of their own: unlike other parameters, they are never sharded."""
    parameters = list(net.parameters())
    kinds = [p for p in parameters if p.ndim], [p for p in parameters if not p.ndim]
    groups = [{"params": group} for group in kinds if group]
    return torch.optim.Adam(groups, lr=config.ref_lr, betas=config.betas, fused=device.type in ("cpu", "cuda"))
