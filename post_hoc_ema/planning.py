"""Plans of snapshots: which to store, in which precision, so that averages of wanted EMA lengths can be reconstructed.

forecast_errors   how exact reconstruction will be
plan_storage      how many, evenly spaced, and in which type
thin              which to keep of a long run, where there is room for a few
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from edm2.post_hoc_ema.profile import ReconstructionError
from edm2.post_hoc_ema.tails import power_profile, tail_coefficients, tail_forecast

STORED = (0.05, 0.10)
"""EMA lengths that the paper tracks."""

MOST_SNAPSHOTS = 256
"""Snapshots per EMA length in a forecast at most, which then takes half a second; errors are below 0.01 % there."""

ROUNDING_LIMIT = 2e-3
"""Relative error of a reconstructed weight, from rounding of the stored ones, that is not worth more bytes."""


def evenly_spaced_error(count: int, sigma_rel: float, stored: Sequence[float] = STORED) -> ReconstructionError:
    """Forecast for `count` snapshots of each stored EMA length, evenly spaced over the run, at its end."""
    return forecast_errors(np.arange(1, count + 1) / count, [sigma_rel], stored)


def forecast_errors(
    times: ArrayLike, sigma_rels: Sequence[float], stored: Sequence[float] = STORED
) -> ReconstructionError:
    """Forecast for snapshots of all stored EMA lengths at some times, at the last of them, without errors of rounding.

    Raises:
        ValueError: An EMA length is outside (0, 12^-0.5), or a time is not positive.
    """
    times = np.asarray(times, dtype=np.float64)
    inputs = [power_profile(t, s) for t in times for s in stored]
    targets = [power_profile(times.max(), s) for s in sigma_rels]
    return tail_forecast(inputs, targets, tail_coefficients(inputs, targets))


def snapshots_needed(sigma_rel: float, profile_error: float, stored: Sequence[float] = STORED) -> int | None:
    """Smallest number of evenly spaced snapshots per stored EMA length with at most this relative error of the profile.

    None if 256 are not enough.

    Raises:
        ValueError: An EMA length is outside (0, 12^-0.5).
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
    """The smallest type whose rounding a reconstruction with this noise gain tolerates."""
    for dtype in (torch.bfloat16, torch.float16):
        if rounding_error(dtype, noise_gain) <= ROUNDING_LIMIT:
            return dtype
    return torch.float32


@dataclass(frozen=True)
class StoragePlan:
    """Snapshots that an EMA length needs."""

    sigma_rel: float
    snapshots: int | None
    """Snapshots per stored EMA length; None: 256 are not enough."""
    dtype: torch.dtype
    """The smallest type that will do."""
    noise_gain: float

    def nbytes(self, parameters: int, stored: Sequence[float] = STORED) -> int | None:
        """Bytes on disk of all snapshots of a network."""
        return self.snapshots and self.snapshots * len(stored) * parameters * self.dtype.itemsize


def plan_storage(sigma_rel: float, profile_error: float, stored: Sequence[float] = STORED) -> StoragePlan:
    """Plan evenly spaced snapshots from which to reconstruct an EMA length at the end, with this error at most."""
    count = snapshots_needed(sigma_rel, profile_error, stored)
    gain = evenly_spaced_error(count or MOST_SNAPSHOTS, sigma_rel, stored).noise_gain.item()
    return StoragePlan(sigma_rel, count, storage_dtype(gain), gain)


def thin(times: Sequence[int], keep: int) -> list[int]:
    """The `keep` of some times that serve reconstruction at the end of the run best.

    Profiles are narrow near the present, where short EMA lengths look, and wide ones reach back to the beginning, so
    both ends of a run deserve more snapshots than its middle: as many as Chebyshev's points, the best for
    approximation on an interval, whose spacing at time t of T grows like sqrt(t (T - t)). While there are too many, the
    time whose neighbours t₋ and t₊ are closest goes, compared with that spacing:

        (t₊ - t₋)² / (t (T - t)),    T the latest time

    The earliest of equals goes first; the latest time always stays. The beginning of the run counts as a neighbour.

    Args:
        times: Images seen at each snapshot, ascending and positive.
        keep: How many to keep, at least 1.
    """
    kept = np.asarray(times, dtype=np.int64)
    while len(kept) > keep:
        t = kept[:-1].astype(np.float64)
        gaps = kept[1:] - np.concatenate([[0], kept[:-2]])
        kept = np.delete(kept, np.argmin(gaps.astype(np.float64) ** 2 / (t * (kept[-1] - t))))
    return kept.tolist()


def thin_along(times: Iterable[int], keep: int) -> list[int]:
    """Times that remain if `thin` is applied after each new one, so that there are never more than `keep`."""
    kept: list[int] = []
    for time in times:
        kept = thin([*kept, time], keep)
    return kept
