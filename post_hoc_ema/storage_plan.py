"""How many snapshots to store, in which precision, so that averages of the wanted widths can be reconstructed later."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edm2.post_hoc_ema.profile import ReconstructionError, reconstruction_error

STORED = (0.05, 0.10)
"""The widths that the paper tracks."""

MOST_SNAPSHOTS = 1024
"""Per width; beyond, the equations are too ill-conditioned to promise anything (condition number 1e6 at 64, n⁴)."""

ROUNDING_LIMIT = 2e-3
"""Relative error of a reconstructed weight, from rounding of the stored ones, that is not worth more bytes."""


def evenly_spaced_error(count: int, sigma_rel: float, stored: Sequence[float] = STORED) -> ReconstructionError:
    """Forecast for `count` snapshots of each stored width, evenly spaced over the run, at its end."""
    t, widths = np.meshgrid(np.arange(1, count + 1) / count, stored)
    return reconstruction_error(t.ravel(), widths.ravel(), 1, sigma_rel)


def snapshots_needed(sigma_rel: float, profile_error: float, stored: Sequence[float] = STORED) -> int | None:
    """The smallest number of evenly spaced snapshots per stored width with at most this relative error of the profile.

    None if 1024 are not enough.

    Raises:
        ValueError: A width is outside (0, 12^-0.5).
    """

    def enough(count: int) -> bool:
        return evenly_spaced_error(count, sigma_rel, stored).profile_error.item() <= profile_error

    high = 2
    while not enough(high):
        if high >= MOST_SNAPSHOTS:
            return None
        high *= 2
    low = high // 2  # not enough, or too few for a reconstruction
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def rounding_error(dtype: torch.dtype, noise_gain: float = 1.0) -> float:
    """Relative error of a weight, root mean square, that comes from storing the snapshots in `dtype`.

        ε √(1/12) √(3 / (8 ln 2)) · noise gain

    for ε, the distance from 1 to the next number of that type, and weights that are far from the smallest numbers of
    it, so that all mantissas occur (with density 1/m). In float16 these begin below 6e-5.
    """
    return torch.finfo(dtype).eps * (1 / 12) ** 0.5 * (3 / (8 * np.log(2))) ** 0.5 * noise_gain


def storage_dtype(noise_gain: float) -> torch.dtype:
    """The smallest type whose rounding a reconstruction with this noise gain can do with."""
    for dtype in (torch.bfloat16, torch.float16):
        if rounding_error(dtype, noise_gain) <= ROUNDING_LIMIT:
            return dtype
    return torch.float32


@dataclass(frozen=True)
class StoragePlan:
    """What a width asks for."""

    sigma_rel: float
    snapshots: int | None
    """Per stored width; None: 1024 are not enough."""
    dtype: torch.dtype
    """The smallest type that will do."""
    noise_gain: float

    def nbytes(self, parameters: int, stored: Sequence[float] = STORED) -> int | None:
        """Bytes on disk of all snapshots of a network."""
        return self.snapshots and self.snapshots * len(stored) * parameters * self.dtype.itemsize


def plan_storage(sigma_rel: float, profile_error: float, stored: Sequence[float] = STORED) -> StoragePlan:
    """Snapshots, evenly spaced over a run, from which to reconstruct a width at its end with this error at most."""
    count = snapshots_needed(sigma_rel, profile_error, stored)
    gain = evenly_spaced_error(count or MOST_SNAPSHOTS, sigma_rel, stored).noise_gain.item()
    return StoragePlan(sigma_rel, count, storage_dtype(gain), gain)
