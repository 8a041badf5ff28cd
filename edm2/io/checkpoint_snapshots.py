"""Averages in the last checkpoint of a run that was killed before it could write a snapshot."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2.post_hoc_ema.snapshot import PartialSnapshot
from edm2.post_hoc_ema.tensor_files import TensorLayout
from edm2.training.run.checkpoint_folder import find_checkpoints, read_state


class CheckpointSnapshot(PartialSnapshot):
    """A snapshot that lies in a checkpoint, among all that a run needs to go on."""

    def __init__(self, path: Path, sigma_rel: float, metadata: dict[str, Any]) -> None:
        self.path = path
        self.sigma_rel = sigma_rel
        self.images_seen: int = metadata["images_seen"]
        self.metadata = {**metadata, "sigma_rel": sigma_rel}
        self.buffers = frozenset(metadata["buffers"])
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # a second to import

        entries = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        self._entries: dict[str, Any] = entries
        self.names = tuple(name.removeprefix("net.") for name in entries if name.startswith("net."))

    def _key(self, name: str) -> str:
        averaged = f"ema.{self.sigma_rel!r}/{name}"
        return averaged if averaged in self._entries else f"net.{name}"

    def layout(self, name: str) -> TensorLayout:
        entry = self._entries[self._key(name)]
        return TensorLayout(entry.properties.dtype, tuple(entry.size))

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        """Numbers `start` to `stop` of a tensor, which is read as a whole."""
        return self.read(name).flatten()[start:stop]

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU: its average, or a copy of a buffer."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        key = self._key(name)
        entry = self._entries[key]
        tensors = {key: torch.empty(entry.size, dtype=entry.properties.dtype)}
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(self.path)), no_dist=True)
        return tensors[key]


def snapshots_in_checkpoint(checkpoints: Path) -> list[CheckpointSnapshot]:
    """The averages in the newest checkpoint, by EMA length; none without a checkpoint, or in those of version 0.1."""
    for path in find_checkpoints(checkpoints)[-1:]:
        if metadata := read_state(path).get("snapshot"):
            return [CheckpointSnapshot(path, length, metadata) for length in sorted(metadata["training"]["sigma_rels"])]
    return []
