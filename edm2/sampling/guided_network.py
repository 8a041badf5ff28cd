"""A network and its guide as one network, and the network that guides itself by its own dropout."""

import copy
import math
from functools import partial
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


class LevelMasks:
    """Masks of dropout that depend on the noise level: the same for all images, others at other levels.

    An image then depends on its seed and class alone, and the ODE has the same right-hand side whenever it is solved. A
    mask that stayed would push all samples the same way at all levels; these cancel along the way.
    """

    def __init__(self, rate: float, seed: int) -> None:
        self.rate = rate
        self.seed = seed
        self.levels: list[int] = []

    def note_level(self, net: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Hook before the forward pass: remember the noise level, or that of each image."""
        sigma = torch.as_tensor(inputs[1] if len(inputs) > 1 else options["sigma"]).flatten().tolist()
        self.levels = [round(1000 * math.log(max(level, 1e-6))) for level in sigma]

    def drop(self, block: int, x: Tensor) -> Tensor:
        """Dropout of activations [N, C, H, W] of a block."""
        masks = {level: self._mask(block, level, x.shape[1:]) for level in set(self.levels)}
        return x * torch.stack([masks[level] for level in self.levels]).to(x)  # [N, C, H, W] or [1, C, H, W]

    def _mask(self, block: int, level: int, shape: torch.Size) -> Tensor:
        """Mask of a block at a level, [C, H, W]."""
        seed = hash((self.seed, level, block)) % (1 << 32)  # of integers: the same in every process
        kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= self.rate
        return kept / (1 - self.rate)


def with_dropout(net: Precond, rate: float, seed: int = 0) -> Any:
    """Copy a network, folded or not, with dropout between the convolutions of its blocks (`LevelMasks`).

    A guide that costs no training: the network that drops activations errs where the network does, only more.

    Raises:
        ValueError: the rate does not lie between 0 and 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"a dropout rate of {rate:g} must lie between 0 and 1")
    thinned, masks = copy.deepcopy(net), LevelMasks(rate, seed)
    thinned.register_forward_pre_hook(masks.note_level, with_kwargs=True)
    for number, block in enumerate(blocks(thinned)):
        setattr(block, "drop", partial(masks.drop, number))  # noqa: B010  # for type checkers it is a method
    return thinned
