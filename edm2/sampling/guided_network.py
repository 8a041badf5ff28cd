"""A network and its guide as one network, and the network that guides itself by its own dropout."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from edm2.networks import NetworkConfig, Precond, fold
from edm2.networks.blocks import blocks
from edm2.sampling.guidance import EVERYWHERE, GuidedDenoiser, Interval, guided, without_labels
from edm2.sampling.samplers.heun import Denoiser


class GuidedNetwork(nn.Module):
    """A network with its guide, weight and interval: sampled, measured and distilled like a network.

    Args:
        main: The network.
        guide: Network to guide away from; None: `main` itself without labels.
        weight: Guidance weight, as of `guided`.
        interval: Noise levels with guidance.
    """

    def __init__(self, main: Precond, guide: Precond | None, weight: float, interval: Interval = EVERYWHERE) -> None:
        super().__init__()
        self.main = main
        self.guide = guide
        self.weight = weight
        self.interval = interval

    @property
    def config(self) -> NetworkConfig:
        """Configuration of `main`."""
        return self.main.config

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data of `main`."""
        return self.main.sigma_data

    @property
    def empty_classes(self) -> tuple[int, ...]:
        """Classes that `main` never saw."""
        return self.main.empty_classes

    @property
    def abilities(self) -> tuple[str, ...]:
        """Ways to sample it (`edm2.networks.precond.ABILITIES`): guidance is of denoisers."""
        return tuple(name for name in self.main.abilities if name == "denoise")

    @property
    def denoiser(self) -> GuidedDenoiser:
        """The two networks as `edm2.guided` combines them."""
        guide: Denoiser = without_labels(self.main) if self.guide is None else self.guide
        return guided(self.main, guide, self.weight, self.interval)

    def at_step(self, sigma: Tensor | float) -> Denoiser:
        """Denoiser for a step that begins at `sigma`."""
        return self.denoiser.at_step(sigma)

    def changes_between(self, sigma: float, other: float) -> bool:
        """True if steps that begin at these two levels have different denoisers."""
        return self.denoiser.changes_between(sigma, other)

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None, **options: Any) -> Tensor:
        """D(x; sigma) of images [N, C, H, W]; `sigma` is a number or [N], `options` are conditions."""
        return self.denoiser(x, torch.as_tensor(sigma, device=x.device), class_labels, **options)

    def folded(self, dtype: torch.dtype | None = None) -> "GuidedNetwork":
        """Copy for inference, both networks folded (`edm2.networks.fold`)."""
        guide = None if self.guide is None else fold(self.guide, dtype)
        return GuidedNetwork(fold(self.main, dtype), guide, self.weight, self.interval)


class FixedDropout:
    """Dropout that always drops the same activations: a mask [1, C, H, W] for each shape.

    An image then depends on its seed and class alone, and the ODE has the same right-hand side in every evaluation.

    Args:
        rate: Probability to drop an activation.
        seed: Seed of the masks.
    """

    def __init__(self, rate: float, seed: int) -> None:
        self.rate = rate
        self.seed = seed
        self._masks: dict[Any, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        key = x.shape[1:], x.device, x.dtype
        if key not in self._masks:
            kept = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(self.seed)) >= self.rate
            self._masks[key] = (kept / (1 - self.rate)).to(x)
        return x * self._masks[key]


def with_dropout(net: Precond, rate: float, seed: int = 0) -> Any:
    """Copy a network, folded or not, with dropout of fixed masks between the convolutions of its blocks.

    A guide that costs no training: the network that drops activations errs where the network does, only more.

    Raises:
        ValueError: the rate does not lie between 0 and 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"a dropout rate of {rate:g} must lie between 0 and 1")
    thinned = copy.deepcopy(net)
    for number, block in enumerate(blocks(thinned)):
        setattr(block, "drop", FixedDropout(rate, seed + number))  # noqa: B010  # for type checkers it is a method
    return thinned
