"""Disk space: what a run will write, and whether there is room for it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from edm2.post_hoc_ema import thin_along
from edm2.training.config import DTYPES, TrainingConfig
from edm2.training.schedule import due_times

HEADER = 2_500, 110
"""Bytes of a snapshot beside its numbers: metadata, and an entry for each tensor."""

ENTRY = 1_900
"""Bytes of a checkpoint per tensor beside its numbers: its container, and its part of the index."""


@dataclass(frozen=True)
class FileSizes:
    """Bytes of what a run writes."""

    snapshots: int
    """Of one time, all lengths together."""
    checkpoint: int
    ends: int
    """Raw weights, and the average of a fixed half-life, which are written once more at the end."""


def file_sizes(config: TrainingConfig, net: nn.Module) -> FileSizes:
    """What the files of a run will take.

    Args:
        config: The run.
        net: Its network, of which only shapes are looked at (torch's meta device will do).
    """
    numbers = sum(p.numel() for p in net.parameters())
    tensors = len(list(net.parameters()))
    header = HEADER[0] + HEADER[1] * tensors
    kept = 3 + config.num_averages  # weights, two moments, averages
    return FileSizes(
        snapshots=len(config.sigma_rels) * (numbers * DTYPES[config.snapshot_precision].itemsize + header),
        checkpoint=kept * numbers * 4 + (kept + 1) * tensors * ENTRY,  # Adam also counts its steps, tensor by tensor
        ends=(1 + (config.traditional_ema is not None)) * (numbers * 4 + header),
    )


@dataclass(frozen=True)
class DiskForecast:
    """What a run will have written.

    Args:
        config: The run.
        sizes: Of its files.
    """

    config: TrainingConfig
    sizes: FileSizes

    @property
    def all_times(self) -> list[int]:
        """Images seen when snapshots are written."""
        config = self.config
        return due_times(config.snapshot_every, config.batch_size, config.duration)

    @property
    def kept_times(self) -> list[int]:
        """Those of `all_times` of which snapshots are there at the end."""
        keep = self.config.keep_snapshots
        return self.all_times if keep is None else thin_along(self.all_times, keep)

    @property
    def final(self) -> int:
        """Bytes at the end."""
        return self._bytes(0)

    @property
    def peak(self) -> int:
        """The most bytes on the way: new snapshots, and new checkpoints, are complete before old ones are removed."""
        return self._bytes(1)

    def _bytes(self, more: int) -> int:
        """With so many more snapshots and checkpoints than are kept, if there ever are so many."""
        config, sizes = self.config, self.sizes
        times, checkpoints = len(self.all_times), self.checkpoints
        kept_times = min(times, (config.keep_snapshots or times) + more)
        return (
            kept_times * sizes.snapshots
            + min(checkpoints, config.keep_checkpoints + more) * sizes.checkpoint
            + sizes.ends
        )

    @property
    def checkpoints(self) -> int:
        """How many are written."""
        return len(due_times(self.config.checkpoint_every, self.config.batch_size, self.config.duration))


def free_space(path: str | os.PathLike[str]) -> int | None:
    """Bytes that may still be written at `path`, or where it will be made; None where nobody knows.

    Quotas are mostly not known here, and others write to the same disk: there may be less, but not more.
    """
    there = next(place for place in (Path(path).absolute(), *Path(path).absolute().parents) if place.is_dir())
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return None


def used_space(folder: str | os.PathLike[str]) -> int:
    """Bytes of the files of a run that is there already: they count as written."""
    return sum(path.lstat().st_size for path in Path(folder).rglob("*") if path.is_file())
