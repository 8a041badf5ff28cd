"""Updates of Pareto-optimal loss weights (arXiv 2303.09556) from gradients of a step's images, every so many steps."""

from collections.abc import Sequence
from typing import Any

from edm2.training.accumulation import Part
from edm2.training.distributed.strategies import Strategy
from edm2.training.draws import NoiseDraws
from edm2.training.loss.bins import x0_gradients
from edm2.training.loss.pareto import Pareto


class ParetoUpdates:
    """Lets a `Pareto` weighting learn from the gradients of each bin of noise levels."""

    def __init__(self, weighting: Pareto, net: Any, draws: NoiseDraws, strategy: Strategy) -> None:
        self.weighting = weighting
        self.net = net
        self.draws = draws
        self.strategy = strategy

    def __call__(self, parts: Sequence[Part], step: int) -> None:
        """Update the weights from the images of a step, if they are due at this number of steps."""
        if not self.weighting.is_due(step):
            return
        sums = []
        for position, batch in parts:
            sigma = self.draws.stratified_sigma(position, len(batch.images))  # so that every bin has images
            noise = self.draws.noise(position, batch.images.shape)
            self.draws.seed_dropout(position)
            images, labels, conditions = batch
            sums.append(x0_gradients(self.net, self.weighting.bins, images, labels, sigma, noise, conditions))
        gradients, counts = (self.strategy.sum(sum(values)) for values in zip(*sums, strict=True))
        self.weighting.update(gradients, counts)
