"""Disk space: what a run will write, and whether there is room for it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from edm2.post_hoc_ema import thin_along
from edm2.training.config import DTYPES, TrainingConfig
from edm2.training.schedule import due_times
from edm2.training.settings import OutputConfig

HEADER = 2_500, 110
"""Bytes of a snapshot beside its numbers: metadata, and an entry for each tensor."""

ENTRY = 300
"""Bytes of a checkpoint per tensor beside its numbers: its entry in the header of a file."""


@dataclass(frozen=True)
class FileSizes:
    """Sizes in bytes of the files of a run."""

    snapshots: int
    """Snapshots of one time, of all EMA lengths together."""
    checkpoint: int
    ends: int
    """Files at the end: raw weights, and the average of a fixed half-life."""


def file_sizes(config: OutputConfig, net: nn.Module) -> FileSizes:
    """Sizes of the files that a run will write.

    Args:
        net: Its network; only shapes matter (torch's meta device will do).
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
    """Disk space that a run will have used."""

    config: TrainingConfig
    sizes: FileSizes

    @property
    def all_times(self) -> list[int]:
        """Images seen when snapshots are written."""
        return due_times(self.config.snapshot_every, self.config.batch_size, self.config.duration)

    @property
    def kept_times(self) -> list[int]:
        """Images seen of the snapshots that remain at the end."""
        keep = self.config.keep_snapshots
        return self.all_times if keep is None else thin_along(self.all_times, keep)

    @property
    def checkpoints(self) -> int:
        return len(due_times(self.config.checkpoint_every, self.config.batch_size, self.config.duration))

    @property
    def final(self) -> int:
        """Bytes at the end."""
        return self._bytes(0)

    @property
    def peak(self) -> int:
        """Largest number of bytes on the way: new files are complete before old ones are removed."""
        return self._bytes(1)

    def _bytes(self, more: int) -> int:
        """Bytes with `more` snapshots and checkpoints than are kept, if there ever are as many."""
        times = len(self.all_times)
        snapshots = min(times, (self.config.keep_snapshots or times) + more) * self.sizes.snapshots
        checkpoints = min(self.checkpoints, self.config.keep_checkpoints + more) * self.sizes.checkpoint
        return snapshots + checkpoints + self.sizes.ends


def free_space(path: str | os.PathLike[str]) -> int | None:
    """Free bytes at `path`, or where it will be made; None if the system does not say.

    Quotas mostly do not show, and others write to the same disk: there may be less, but not more.
    """
    existing = next(parent for parent in (Path(path).absolute(), *Path(path).absolute().parents) if parent.is_dir())
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return None


def used_space(folder: str | os.PathLike[str]) -> int:
    """Bytes of the files that a run has written already."""
    return sum(path.lstat().st_size for path in Path(folder).rglob("*") if path.is_file())
