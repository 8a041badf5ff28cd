"""One call from a folder of any kind to an average: `rebuild`."""

import os
from collections.abc import Sequence

from torch import Tensor

from edm2.post_hoc_ema.foreign.facts import Facts
from edm2.post_hoc_ema.foreign.lora import combine_products
from edm2.post_hoc_ema.foreign.recognition import recognize
from edm2.post_hoc_ema.reconstruction import Reconstruction, Target, reconstruct
from edm2.post_hoc_ema.selection import select_snapshots
from edm2.post_hoc_ema.snapshot import Snapshot, find_snapshots
from edm2.post_hoc_ema.tails import power_profile


def rebuild(
    folder: str | os.PathLike[str],
    sigma_rel: float,
    at: int | None = None,
    *,
    lora: str = "factors",
    clock_from: int = 0,
    update_every: int | None = None,
    tracked: Sequence[float] = (),
    decay: float | None = None,
    part: str | None = None,
) -> dict[str, Tensor]:
    """Return the state dict of an average of EMA length `sigma_rel`, rebuilt from the files in a folder.

    Args:
        folder: Snapshots of this package, or files of another program (`recognize`).
        sigma_rel: EMA length, within (0, 12^-0.5).
        at: Time of the average, one of the stored ones; None for the last.
        lora: "factors" averages the two matrices of each LoRA, "product" their product, brought back to the rank by an
            SVD, and "stack" the product exactly, at a higher rank.
        clock_from, update_every, tracked, decay, part: As in `Facts`.

    Raises:
        ValueError: The folder cannot be recognized, or what it holds cannot be combined.
        OSError: A file cannot be read.
    """
    facts = Facts(clock_from=clock_from, update_every=update_every, tracked=tracked, decay=decay, part=part)
    found = recognize(folder, facts)
    snapshots: Sequence[Snapshot] = found.snapshots if found else find_snapshots(folder)
    targets = [wanted_profile(select_snapshots(snapshots, at)[0].images_seen, sigma_rel, clock_from)]
    if lora == "factors":
        return reconstruct(snapshots, targets, at)[0]
    return combine_products(Reconstruction(snapshots, targets, at), lora)[0]


def wanted_profile(at: int, sigma_rel: float, clock_from: int) -> Target:
    """Target of a reconstruction: an EMA length, or its profile on the clock of fine-tuning."""
    return power_profile(at, sigma_rel, clock_from) if clock_from else sigma_rel
