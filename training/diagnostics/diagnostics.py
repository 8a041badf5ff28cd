"""Schedule of a run's measurements, and the record of each."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from edm2.networks import Precond
from edm2.training.config import TrainingConfig
from edm2.training.data.batches import BatchStream
from edm2.training.diagnostics.batches import by_bin, over_all_levels, spaced_images
from edm2.training.diagnostics.magnitudes import measure_activations, measure_weights, number
from edm2.training.diagnostics.noise_levels import measure_noise_levels
from edm2.training.diagnostics.updates import UpdateRecord, measure_update
from edm2.training.loss.noise import NoiseDistribution
from edm2.training.loss.objective import DenoisingLoss
from edm2.training.run.logging import Record
from edm2.training.run.totals import StepResult
from edm2.training.schedule import is_due

BINS = 8
"""Equally probable bins of noise levels."""

PAPER_IMAGES = 4096
"""Images whose activations the paper measures (Appendix A.6)."""


class Diagnostics:
    """Measurements of a run. They change nothing about it: neither weights, nor gradients, nor random numbers.

        with diagnostics.watching(net, optimizer, images_seen):
            step = ...                                              # one optimizer step
        diagnostics.add(step)
        if diagnostics.due(before, images_seen):
            record = diagnostics.measure(...)

    The number of images grows with the interval between two measurements: for activations one per 128, for gradients
    one per 256. That is 0.7 % of the time of training on them. It is at least 64, so that intervals below 16,000
    images cost more.

    Args:
        config: The run; `diagnostics_every` is the interval in images, None for no measurement.
        distribution: Noise levels in training.

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
        self._update = UpdateRecord()

    def due(self, before: int, now: int) -> bool:
        """True if a measurement follows a step from `before` to `now` images seen: the first, the last, and between."""
        every = self.config.diagnostics_every
        return every is not None and (before == 0 or now >= self.config.duration or is_due(every, before, now))

    @contextmanager
    def watching(self, net: Precond, optimizer: torch.optim.Optimizer, images_seen: int) -> Iterator[None]:
        """Measure the update of the step that starts at `images_seen`, within the context, if a measurement is due."""
        if not self.due(images_seen, images_seen + self.config.batch_size):
            yield
            return
        with measure_update(net, optimizer) as self._update:
            yield

    def add(self, step: StepResult) -> None:
        self.steps += 1
        self.nonfinite_steps = self.nonfinite_steps + step.nonfinite  # on the device: no step waits for it

    def measure(
        self,
        images_seen: int,
        net: Precond,
        averaged: Callable[[float], Precond],
        loss: DenoisingLoss,
        stream: BatchStream,
        images_per_forward: int,
    ) -> Record:
        """Make one measurement.

        Args:
            images_seen: The clock.
            net: The network as the optimizer sees it.
            averaged: Network in evaluation mode by EMA length; the shortest tracked one is measured, which follows the
                training most closely.
            loss: The training objective.
            stream: Training images.
            images_per_forward: Largest number of images in a forward pass.

        Returns:
            A record for diagnostics.jsonl, as in docs/diagnostics.md.
        """
        start = time.perf_counter()
        update, self._update = self._update, UpdateRecord()
        sigma_rel = min(self.config.sigma_rels)
        average = averaged(sigma_rel)
        batch = over_all_levels(spaced_images(stream, self.activation_images), self.distribution)
        bins = by_bin(spaced_images(stream, self.images_per_bin), self.distribution, BINS)
        record: Record = {"images_seen": images_seen}
        record["activations"] = measure_activations(average, batch.split(images_per_forward)) | {"sigma_rel": sigma_rel}
        record["weights"] = {"ema": measure_weights(average), "raw": update.weights or measure_weights(net)}
        record["updates"] = update.updates
        record |= measure_noise_levels(net, loss, bins, images_per_forward)
        record["nonfinite"] |= self.state()
        self.steps, self.nonfinite_steps = 0, 0
        record["diagnostics_seconds"] = number(time.perf_counter() - start + update.seconds)
        return record

    def state(self) -> dict[str, int]:
        """State for a checkpoint, as JSON: steps since the last measurement."""
        return {"steps": self.steps, "nonfinite_steps": int(self.nonfinite_steps)}

    def load_state(self, state: dict[str, int] | None) -> None:
        """Continue from `state()`; from zero if an older checkpoint has none."""
        if state is not None:
            self.steps, self.nonfinite_steps = state["steps"], state["nonfinite_steps"]
