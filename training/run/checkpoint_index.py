"""Reading checkpoints of version 0.1, whose index (`.metadata`) is a pickle, without executing anything."""

import pickle
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", "device", "float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # the same classes under Python 3.13
}  # fmt: skip
"""Names that the index of tensors needs. Not BytesStorageMetadata: torch unpickles the bytes of such an entry."""


class _IndexUnpickler(pickle.Unpickler):
    """Makes the dataclasses of an index of tensors and calls nothing else. Raises UnpicklingError for other names."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the checkpoint's index asks for {module}.{name}, which is not allowed")


class SafeFileSystemReader(dcp.FileSystemReader):
    """`FileSystemReader` that admits an index of tensors and no other pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index. Raises pickle.UnpicklingError if it asks for anything but descriptions of tensors."""
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _IndexUnpickler(file).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata
