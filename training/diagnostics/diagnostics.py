"""When a run is measured, on how much, and the record that comes of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edm2.networks import Precond
from edm2.training.config import TrainingConfig
from edm2.training.data.batches import BatchStream
from edm2.training.diagnostics.batches import by_bin, over_all_levels, spaced_images
from edm2.training.diagnostics.magnitudes import measure_activations, measure_weights, number
from edm2.training.diagnostics.noise_levels import measure_noise_levels
from edm2.training.diagnostics.updates import UpdateWatch
from edm2.training.loss.noise import NoiseDistribution
from edm2.training.loss.objective import DenoisingLoss
from edm2.training.run.logging import Record
from edm2.training.run.totals import StepResult
from edm2.training.schedule import is_due

BINS = 8
"""Intervals of equal probability that the noise levels are divided into."""

PAPER_IMAGES = 4096
"""Images whose activations the paper measures (Appendix A.6)."""


class Diagnostics:
    """The instruments of a run. They change nothing about it: neither weights, nor gradients, nor random numbers.

        with diagnostics.watching(net, optimizer, images_seen):
            step = ...                                              # one optimizer step
        diagnostics.add(step)
        if diagnostics.due(before, images_seen):
            record = diagnostics.measure(...)

    A measurement shows the network as many images as pays with those between two: for activations one per 128, for
    gradients one per 256. That is 0.7 % of the time of training on them. Where it makes fewer than 64 images, 64 are
    shown nevertheless: intervals below 16,000 images cost more.

    Args:
        config: The run; `diagnostics_every` is the interval in images, None for no measurement.
        distribution: Of the noise levels in training.

    Attributes:
        activation_images: Images whose activations are measured.
        images_per_bin: Images whose loss and gradient are measured in each bin of noise levels.
    """

    def __init__(self, config: TrainingConfig, distribution: NoiseDistribution) -> None:
        self.config = config
        self.distribution = distribution
        every = config.diagnostics_every or 0
        self.activation_images = min(max(every // 128, 64), PAPER_IMAGES)
        self.images_per_bin = min(max(every // 256, 64), PAPER_IMAGES) // BINS
        self.steps = 0
        self.nonfinite_steps: torch.Tensor | int = 0
        self._watch: UpdateWatch | None = None

    def due(self, before: int, now: int) -> bool:
        """Whether to measure after a step from `before` to `now` images seen: the first, the last, and on the way."""
        every = self.config.diagnostics_every
        return every is not None and (before == 0 or now >= self.config.duration or is_due(every, before, now))

    @contextmanager
    def watching(self, net: Precond, optimizer: torch.optim.Optimizer, images_seen: int) -> Iterator[None]:
        """The step within this context starts at `images_seen`; if a measurement follows it, its update is watched."""
        if not self.due(images_seen, images_seen + self.config.batch_size):
            yield
            return
        self._watch = UpdateWatch(net)
        with self._watch.around(optimizer):
            yield

    def add(self, step: StepResult) -> None:
        """Take in one step."""
        self.steps += 1
        self.nonfinite_steps = self.nonfinite_steps + step.nonfinite  # on the device: no step waits for it

    def measure(
        self,
        images_seen: int,
        net: Precond,
        averaged: Callable[[float], Precond],
        loss: DenoisingLoss,
        feed: BatchStream,
        images_per_forward: int,
    ) -> Record:
        """Everything that is measured at one time.

        Args:
            images_seen: The clock.
            net: The network as the optimizer sees it.
            averaged: Network in evaluation mode by EMA length; the shortest tracked one is measured, which follows the
                training most closely.
            loss: The training objective.
            feed: Where images come from.
            images_per_forward: How many the memory holds, as far as is known.

        Returns:
            A record for diagnostics.jsonl: `docs/diagnostics.md` says what is in it.
        """
        start = time.perf_counter()
        sigma_rel = min(self.config.sigma_rels)
        average = averaged(sigma_rel)
        record: Record = {"images_seen": images_seen}
        record["activations"] = self._activations(average, feed, images_per_forward) | {"sigma_rel": sigma_rel}
        watch, self._watch = self._watch or UpdateWatch(net), None
        record["weights"] = {"ema": measure_weights(average), "raw": watch.weights or measure_weights(net)}
        record["updates"] = watch.updates
        record |= self._noise_levels(net, loss, feed, images_per_forward)
        record["nonfinite"] |= self._count_of_steps()
        record["diagnostics_seconds"] = number(time.perf_counter() - start + watch.seconds)
        return record

    def _activations(self, average: Precond, feed: BatchStream, images_per_forward: int) -> dict[str, Any]:
        images, labels = spaced_images(feed, self.activation_images)
        batch = over_all_levels(images, labels, self.distribution)
        return measure_activations(average, batch.split(images_per_forward))

    def _noise_levels(
        self, net: Precond, loss: DenoisingLoss, feed: BatchStream, images_per_forward: int
    ) -> dict[str, Any]:
        images, labels = spaced_images(feed, self.images_per_bin)
        bins = by_bin(images, labels, self.distribution, BINS)
        return measure_noise_levels(net, loss, bins, images_per_forward)

    def _count_of_steps(self) -> dict[str, int]:
        counts = self.state()
        self.steps, self.nonfinite_steps = 0, 0
        return counts

    def state(self) -> dict[str, int]:
        """What a resumed run needs, as JSON: steps since the last measurement."""
        return {"steps": self.steps, "nonfinite_steps": int(self.nonfinite_steps)}

    def load_state(self, state: dict[str, int] | None) -> None:
        """Continue from `state()`; None from checkpoints without one."""
        if state is not None:
            self.steps, self.nonfinite_steps = state["steps"], state["nonfinite_steps"]
