"""Sampling by a flow map: from level to level in one evaluation each, as `FlowMapLoss` trains networks to do."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from edm2.sampling.samplers.heun import with_conditions

MAP_LEVELS: dict[int, tuple[float, ...]] = {1: (80, 0), 2: (80, 0.3, 0), 4: (80, 1.2, 0.5, 0.2, 0)}
"""Noise levels for some numbers of evaluations, found on 8x8 digits."""


@torch.no_grad()
def sample_map(
    net: Callable[..., Any],
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    levels: Sequence[float] = MAP_LEVELS[2],
    conditions: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Draw samples by a flow map, x <- X(x; t, s) = (s/t) x + (1 - s/t) D(x; t, s) from each level t to the next, s.

    Args:
        net: Flow map called as net(x, t, labels, target_sigma=s); a `Precond` with a `target_level`.
        noise: Unit Gaussian noise [N, C, H, W].
        labels: Classes in any form that `net` takes.
        levels: Noise levels from the first to 0, one evaluation less than there are.
        conditions: Other conditions by name.

    Returns:
        [N, C, H, W] in the dtype of `noise`.

    Raises:
        ValueError: levels that do not fall to 0, or a network that is no flow map.
    """
    if len(levels) < 2 or levels[-1] != 0 or any(not t > s for t, s in pairwise(levels)):
        raise ValueError(f"levels={tuple(levels)} must fall, and end with 0, such as {MAP_LEVELS[2]}")
    mapped = with_conditions(net, conditions)
    x = noise * levels[0]
    for t, s in pairwise(levels):
        x = s / t * x + (1 - s / t) * mapped(x, noise.new_tensor(t), labels, target_sigma=s).to(noise.dtype)
    return x
