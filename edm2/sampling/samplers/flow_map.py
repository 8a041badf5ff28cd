"""Sampling by a flow map: from level to level in one evaluation each, as `FlowMapLoss` trains networks to do."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from edm2.networks.precond import MAP_LEVELS
from edm2.sampling.samplers.heun import with_conditions


def levels_for(known: Mapping[int, Sequence[float]], num_steps: int) -> tuple[float, ...]:
    """Levels for this number of evaluations, of those that are known. Raises ValueError if there are none."""
    if num_steps not in known:
        numbers = ", ".join(map(str, sorted(known)))
        raise ValueError(f"there are levels for {numbers} evaluations of this map, not for {num_steps}: give levels")
    return tuple(known[num_steps])


def check_levels(abilities: Collection[str], levels: Sequence[float], name: str = "this network") -> None:
    """Refuse levels that do not fall to 0, and networks that do not jump between them.

    Args:
        abilities: Those of the network, of `edm2.networks.precond.ABILITIES`.
        levels: Noise levels.
        name: Name of the network in messages.

    Raises:
        ValueError: either.
    """
    if len(levels) < 2 or levels[-1] != 0 or any(not t > s for t, s in pairwise(levels)):
        raise ValueError(f"levels={tuple(levels)} must fall, and end with 0, such as {MAP_LEVELS[2]}")
    if "map" in abilities or ("consistency" in abilities and len(levels) == 2):
        return
    if "consistency" in abilities:
        raise ValueError(f"{name} is a consistency model, which jumps to 0 alone: draw in one evaluation")
    raise ValueError(f"{name} is a denoiser and no flow map: draw with another sampler, or distil it (edm2 distill)")


@torch.no_grad()
def sample_map(
    net: Callable[..., Any],
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    levels: Sequence[float] | None = None,
    num_steps: int = 2,
    conditions: Mapping[str, Tensor] | None = None,
    randn_like: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Draw samples by a flow map, x <- X(x; t, s) = (s/t) x + (1 - s/t) D(x; t, s) from each level t to the next, s.

    Args:
        net: Flow map called as net(x, t, labels, target_sigma=s); a `Precond` with a `target_level`.
        noise: Unit Gaussian noise [N, C, H, W].
        labels: Classes in any form that `net` takes.
        levels: Noise levels from the first to 0, one evaluation less than there are.
        num_steps: Evaluations, where no levels are given: those of the network for this number.
        conditions: Other conditions by name.
        randn_like: Not used: the map adds no noise.

    Returns:
        [N, C, H, W] in the dtype of `noise`.

    Raises:
        ValueError: levels that do not fall to 0, or a network that is no flow map.
    """
    levels = levels_for(getattr(net, "map_levels", MAP_LEVELS), num_steps) if levels is None else levels
    check_levels(getattr(net, "abilities", ("map",)), levels)
    mapped = with_conditions(net, conditions)
    x = noise * levels[0]
    for t, s in pairwise(levels):
        x = s / t * x + (1 - s / t) * mapped(x, noise.new_tensor(t), labels, target_sigma=s).to(noise.dtype)
    return x
