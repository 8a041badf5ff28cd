"""Which snapshots to keep of a long run, so that any average can still be reconstructed at its end.

Profiles are narrow near the present, where short averages look, and wide averages reach back to the beginning, so
both ends of a run deserve more snapshots than its middle: as many as Chebyshev's points, which are the best for
approximation on an interval. Their spacing at time t of T grows like sqrt(t (T - t)).
"""

from collections.abc import Iterable, Sequence

import numpy as np


def thin(times: Sequence[int], keep: int) -> list[int]:
    """The `keep` of some times that serve reconstruction best.

    While there are too many, the one whose neighbours t₋ and t₊ are closest goes, compared with its spacing:

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
    """Those that remain if there are never more than `keep`: times come one after another, and `thin` follows each."""
    kept: list[int] = []
    for time in times:
        kept = thin([*kept, time], keep)
    return kept
