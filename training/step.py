"""One step of training (arXiv 2312.02696v2, Algorithm 1 with Eqs. 15, 21, 67 and 127)."""

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from edm2.networks import Precond, force_weight_normalization_
from edm2.post_hoc_ema import PowerFunctionEMA, TraditionalEMA
from edm2.training.config import DTYPES, TrainingConfig
from edm2.training.data.batches import Microbatch
from edm2.training.distributed.processes import ONE_PROCESS, Processes
from edm2.training.distributed.strategies import parallel, recompute_blocks_
from edm2.training.loss.bins import x0_gradients
from edm2.training.loss.noise import stratified_normal
from edm2.training.loss.pareto import Pareto
from edm2.training.randomness import PositionRandom, Stream
from edm2.training.run.totals import StepResult
from edm2.training.schedule import inverse_sqrt_lr


class Part(NamedTuple):
    """Images that go through the network at once."""

    place: int
    """Place of the first in the run."""
    images: Tensor
    labels: Tensor | None


class TrainStep:
    """A network that learns, on one device or, together with the other processes of a job, on many.

    Args:
        config: How.
        net: The network, on the CPU.
        processes: Those that train it together.

    Attributes:
        net: The network as the optimizer sees it.
        ema: Its power-function averages.
        images_seen: The clock.
        place: Of the first image that went through the network last.

    Raises:
        ValueError: the processes cannot share a step.
    """

    def __init__(self, config: TrainingConfig, net: Precond, processes: Processes = ONE_PROCESS) -> None:
        self.config = config
        self.processes = processes
        self.share = config.images_per_rank(processes.count)
        self.images_per_forward = min(config.images_per_forward, self.share)
        self.device = processes.device(config.device)
        self.images_seen = 0
        self.place = 0
        self.loss = config.objective()
        layout = torch.contiguous_format if config.shard else net.unet.memory_format  # FSDP2 takes no other
        self.net = net.to(self.device, memory_format=layout).train()
        self.net.compute_dtype = DTYPES[config.precision]
        self.buffers = [name for name, _ in net.named_buffers()]
        if not self.loss.weighting.uses_uncertainty:
            self.net.logvar_linear.requires_grad_(False)  # it gets no gradient, and other processes would wait for one
        if config.recompute:
            recompute_blocks_(self.net)
        self.parallel = parallel(processes, self.device, config.shard, timedelta(seconds=config.patience))
        self.denoiser = self.parallel.wrap(self.net, config.compile)
        self.optimizer = self._optimizer()
        self.ema = PowerFunctionEMA(self.net, config.sigma_rels)
        half_life = config.traditional_ema
        self.traditional_ema = None if half_life is None else TraditionalEMA(self.net, half_life)
        self.random = PositionRandom(config.seed, config.random_block, self.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Adam. Scalars are a group of their own: they are never divided among processes, as other parameters are."""
        parameters = list(self.net.parameters())
        groups = [[p for p in parameters if p.ndim], [p for p in parameters if not p.ndim]]
        groups = [{"params": group} for group in groups if group]
        fused = self.device.type in ("cpu", "cuda")
        return torch.optim.Adam(groups, lr=self.config.ref_lr, betas=self.config.betas, fused=fused)

    def step(
        self,
        microbatches: Sequence[Microbatch],
        sigma: Sequence[Tensor] | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> StepResult:
        """One optimizer step on `config.batch_size` images, of which this process sees its share.

        Args:
            microbatches: (images, labels) of each accumulation round: what the network sees, [N, C, H, W] on the
                device, and its classes.
            sigma: Noise levels [N] of each round; by default those of the images' places in the run.
            noise: Unit Gaussian noise of each round, shaped like its images; likewise.

        Returns:
            Loss and gradients of the step, still on the device.
        """
        config = self.config
        force_weight_normalization_(self.net)  # once: all rounds of a step see the same weights
        self._learn_weights(microbatches)
        loss, error = self._gradients(microbatches, sigma, noise)
        grad_norm, nonfinite = self.parallel.clean_gradients_(self.net)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.images_seen += config.batch_size
        for ema in self._trackers().values():
            ema.update(self.images_seen)
        return StepResult(loss, grad_norm / config.loss_scale, nonfinite, error)

    def _gradients(
        self, microbatches: Sequence[Microbatch], sigma: Sequence[Tensor] | None, noise: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Those of the mean loss over the images of all processes; returns mean loss and error of this one's.

        If memory runs out, in smaller parts.
        """
        while True:
            try:
                return self._add_up(self._parts(microbatches), sigma, noise)
            except torch.OutOfMemoryError:
                if self.processes.count > 1 or self.images_per_forward == 1:  # the others are waiting for a gradient
                    raise
            self._lower_images_per_forward()

    def _add_up(
        self, parts: Sequence[Part], sigma: Sequence[Tensor] | None, noise: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum, error_sum = torch.zeros(2, device=self.device)
        for i, (place, images, labels) in enumerate(parts):
            here = slice(place - parts[0].place, place - parts[0].place + len(images))
            level = self._draw_sigma(place, len(images)) if sigma is None else torch.cat(list(sigma))[here]
            unit = self._draw_noise(place, images.shape) if noise is None else torch.cat(list(noise))[here]
            self._seed_dropout(place)
            self.place = place
            with self.parallel.accumulating() if i + 1 < len(parts) else nullcontext():
                reported: dict[str, Tensor] = {}
                context = SimpleNamespace(report=reported.__setitem__)
                losses = self.loss(self.denoiser, images, labels, sigma=level, noise=unit, context=context)
                loss = losses.sum() / self.share
                (loss * self.config.loss_scale).backward()
            loss_sum += loss.detach()
            error_sum += reported["error"] * (len(images) / self.share)
        return loss_sum, error_sum

    def _parts(self, microbatches: Sequence[Microbatch]) -> list[Part]:
        """Micro-batches with their places, none larger than memory suffices for."""
        place = self.images_seen + self.processes.rank * self.share
        parts = []
        for images, labels in microbatches:
            for i in range(0, len(images), self.images_per_forward):
                part = slice(i, i + self.images_per_forward)
                parts.append(Part(place + i, images[part], None if labels is None else labels[part]))
            place += len(images)
        return parts

    def _lower_images_per_forward(self) -> None:
        self.images_per_forward = -(-self.images_per_forward // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        size = self.images_per_forward
        tqdm.write(f"out of memory: from now on {size} images per forward pass; lower --micro-batch to begin so")

    def _trackers(self) -> dict[str, PowerFunctionEMA | TraditionalEMA]:
        """All averages, by their names in a checkpoint."""
        traditional = {} if self.traditional_ema is None else {"traditional_ema": self.traditional_ema}
        return {"ema": self.ema, **traditional}

    def learning_rate(self) -> float:
        """Learning rate of the step that comes next (Eq. 67)."""
        c = self.config
        return inverse_sqrt_lr(self.images_seen, c.batch_size, c.ref_lr, c.ref_batches, c.rampup_images)

    def _learn_weights(self, microbatches: Sequence[Microbatch]) -> None:
        """Now and then, weights of noise levels that are learned from gradients learn from those of a step's images."""
        weighting = self.loss.weighting
        if not isinstance(weighting, Pareto) or not weighting.is_due(self.images_seen // self.config.batch_size):
            return
        sums = []
        for place, images, labels in self._parts(microbatches):
            sigma = self._stratified_sigma(place, len(images))  # so that every bin has images
            noise = self._draw_noise(place, images.shape)
            self._seed_dropout(place)
            sums.append(x0_gradients(self.net, weighting.bins, images, labels, sigma, noise))
        gradients, counts = (self.parallel.sum(sum(values)) for values in zip(*sums, strict=True))
        weighting.update(gradients, counts)

    def _draw_sigma(self, place: int, count: int) -> Tensor:
        if self.config.stratified_sigma:
            return self._stratified_sigma(place, count)
        return self.loss.distribution.sigma(self.random.normal(Stream.SIGMA, place, place + count))

    def _stratified_sigma(self, place: int, count: int) -> Tensor:
        uniform = self.random.uniform(Stream.SIGMA, place, place + count)
        return self.loss.distribution.sigma(stratified_normal(place, uniform, self.config.batch_size))

    def _draw_noise(self, place: int, shape: torch.Size) -> Tensor:
        return self.random.normal(Stream.NOISE, place, place + shape[0], tuple(shape[1:]))

    def _seed_dropout(self, place: int) -> None:
        """Dropout draws from the global generator; seeded by place, a resumed run draws what it would have drawn."""
        if self.config.network.dropout:
            torch.manual_seed(self.random.derived_seed(Stream.DROPOUT, place))
