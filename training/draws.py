"""Random numbers of a step, each by the position of its image in the run: noise levels, noise, and a loss's own."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from edm2.training.loss.noise import NoiseDistribution, stratified_normal
from edm2.training.randomness import PositionRandom, Stream


class NoiseDraws:
    """Noise levels sigma (Eq. 15) and unit noise n of the images at consecutive positions.

    Args:
        batch_size: Images per step, each of which has a stratum of its own where levels are stratified.
    """

    def __init__(
        self, random: PositionRandom, distribution: NoiseDistribution, batch_size: int, stratified: bool
    ) -> None:
        self.random = random
        self.distribution = distribution
        self.batch_size = batch_size
        self.stratified = stratified

    def sigma(self, position: int, count: int) -> Tensor:
        """Noise levels of `count` images from `position` on: float32 [count]."""
        if self.stratified:
            return self.stratified_sigma(position, count)
        return self.distribution.sigma(self.random.normal(Stream.SIGMA, position, position + count))

    def stratified_sigma(self, position: int, count: int) -> Tensor:
        """Noise levels, one from each of `batch_size` equally probable strata in every step: float32 [count]."""
        uniform = self.random.uniform(Stream.SIGMA, position, position + count)
        return self.distribution.sigma(stratified_normal(position, uniform, self.batch_size))

    def noise(self, position: int, shape: torch.Size) -> Tensor:
        """Unit Gaussians [N, C, H, W] of the N images from `position` on."""
        return self.random.normal(Stream.NOISE, position, position + shape[0], tuple(shape[1:]))

    def seed_dropout(self, position: int) -> None:
        """Seed the global generator, which dropout draws from, so that a resumed run drops the same activations."""
        torch.manual_seed(self.random.derived_seed(Stream.DROPOUT, position))


class GivenDraws:
    """Noise levels and noise of the images of one step, in the place of `NoiseDraws` where they are given.

    Args:
        first: Position of the first image.
        levels: Noise levels [N].
        units: Unit Gaussian noise [N, C, H, W].
    """

    def __init__(self, first: int, levels: Tensor, units: Tensor) -> None:
        self.first = first
        self.levels = levels
        self.units = units

    def sigma(self, position: int, count: int) -> Tensor:
        """Noise levels [count]."""
        return self.levels[position - self.first :][:count]

    def noise(self, position: int, shape: torch.Size) -> Tensor:
        return self.units[position - self.first :][: shape[0]]


class LossContext:
    """Context of the images that a loss gets.

    Args:
        images_seen: Images seen before this step, the clock of the run.
        positions: Positions of the images in the run, consecutive.
        random: Random numbers by position.
        report: Takes the name and value of what the loss wants reported.
    """

    def __init__(
        self, images_seen: int, positions: range, random: PositionRandom, report: Callable[[str, Tensor], None]
    ) -> None:
        self.images_seen = images_seen
        self.positions = positions
        self.report = report
        """`report(name, value)`: a 0-dimensional mean over the images; the run logs names in the loss's `reports`."""
        self._random = random

    def draw(self, name: str, shape: tuple[int, ...] = (), kind: Literal["normal", "uniform"] = "normal") -> Tensor:
        """Random numbers that depend on the run's seed, the name and the images' positions alone.

        So neither the number of processes, nor the split into micro-batches, nor a resume changes them.

        Args:
            name: Name of the draw; another name, other numbers.
            shape: Shape per image.
            kind: Unit Gaussians, or uniform in [0, 1).

        Returns:
            float32 [N, *shape] for the N images.
        """
        draw = {"normal": self._random.normal, "uniform": self._random.uniform}[kind]
        return draw(name, self.positions.start, self.positions.stop, tuple(shape))
