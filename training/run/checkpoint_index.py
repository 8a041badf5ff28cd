"""Reading the index of a torch.distributed.checkpoint without executing anything.

The index (`.metadata`) is a pickle of a few dataclasses, and a pickle is a program. This reader follows the
instructions that such an index consists of, admits these classes and nothing else, and looks at what came of it:

- tensors only, since of any other entry torch unpickles the bytes without restraint;
- files of the checkpoint's own folder only;
- keys and sizes of the types that they should have, since nested ones can take for ever to be hashed or compared.
"""

import io
import pickle
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

_RECORDS = (
    ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta, TensorProperties, TensorStorageMetadata, _StorageInfo,
)  # fmt: skip
"""Classes whose objects are made empty and then given attributes."""

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # the same classes under Python 3.13
}  # fmt: skip
_DTYPES = {"float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}

_INSTRUCTIONS = frozenset(
    getattr(pickle, name)[0]
    for name in (
        *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE"),
        *("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "STACK_GLOBAL", "NEWOBJ", "REDUCE", "BUILD"),
    )
)


class _MetadataUnpickler(pickle._Unpickler):
    """The unpickler that is written in Python: its memo is a dict, where C's would take as much memory as a file asks.

    Raises:
        pickle.UnpicklingError: for any name or instruction that an index does not need.
    """

    stack: list[Any]
    metastack: list[list[Any]]

    dispatch: ClassVar[dict[int, Any]] = {
        code: method for code, method in pickle._Unpickler.dispatch.items() if code in _INSTRUCTIONS
    }

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()) or (module == "torch" and name in _DTYPES):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the checkpoint's index asks for {module}.{name}, which is not allowed")

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-3], self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]  # not in the stubs, like those below

    def load_setitems(self) -> None:
        self._check_keys(self.metastack[-1][-1], self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def load_build(self) -> None:
        target, state = self.stack[-2:]
        known = type(target) in _RECORDS and (isinstance(target, TensorProperties) or _fits(target, state))
        if not known:
            raise pickle.UnpicklingError("the checkpoint's index gives attributes to something that has none")
        super().load_build()  # type: ignore[misc]

    def _check_keys(self, target: Any, keys: Sequence[Any]) -> None:
        if type(target) is not dict or not all(type(key) is str or _is_index(key) for key in keys):
            raise pickle.UnpicklingError("the checkpoint's index has keys that are no names")

    dispatch |= {
        pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems, pickle.BUILD[0]: load_build,
    }  # fmt: skip


def _fits(target: Any, state: Any) -> bool:
    """Whether these are attributes of a record."""
    return type(state) is dict and state.keys() <= {field.name for field in fields(target)}


def _is_index(key: Any) -> bool:
    """Whether this names a part of a tensor."""
    if type(key) is not MetadataIndex:
        return False
    attributes = vars(key)
    return type(attributes.get("fqn")) is str and type(attributes.get("offset")) in (torch.Size, type(None))


class SafeFileSystemReader(dcp.FileSystemReader):
    """`FileSystemReader` that reads the index as above, once."""

    _index: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index of the checkpoint.

        Raises:
            pickle.UnpicklingError: the index holds anything but descriptions of tensors in the checkpoint's folder.
        """
        if self._index is None:
            self._index = read_index((Path(self.path) / ".metadata").read_bytes())
        if self._index.storage_meta is not None:
            self._index.storage_meta.load_id = self.load_id
        return self._index


def read_index(data: bytes) -> Metadata:
    """The index in a file's contents. Raises pickle.UnpicklingError as `SafeFileSystemReader` does."""
    try:
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
        _check(metadata)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # whatever a stranger's program makes of the stack
        raise pickle.UnpicklingError("the checkpoint's index is damaged, or of another kind") from error
    return metadata


def _check(metadata: Any) -> None:
    if type(metadata) is not Metadata or type(metadata.storage_meta) is not StorageMeta:
        raise pickle.UnpicklingError("the checkpoint's index is not a description of tensors")
    for name, entry in metadata.state_dict_metadata.items():
        if type(entry) is not TensorStorageMetadata:
            raise pickle.UnpicklingError(
                f"the checkpoint's index calls {name} {type(entry).__name__}, but only tensors are allowed"
            )
        _check_tensor(name, entry)
    for index, place in metadata.storage_data.items():
        _check_place(index, place)
    if not _are_paths(metadata.planner_data):
        raise pickle.UnpicklingError("the checkpoint's index has names of another kind")


def _check_tensor(name: str, entry: TensorStorageMetadata) -> None:
    sizes = [entry.size, *(size for chunk in entry.chunks for size in (chunk.offsets, chunk.sizes))]
    known = all(type(size) is torch.Size and len(size) == len(entry.size) for size in sizes)
    if not known or sum(chunk.sizes.numel() for chunk in entry.chunks) != entry.size.numel():
        raise pickle.UnpicklingError(f"the checkpoint's index has not all parts of {name}")


def _check_place(index: Any, place: Any) -> None:
    name = place.relative_path
    inside = type(name) is str and name.endswith(".distcp") and Path(name).name == name
    numbers = (place.offset, place.length)
    if type(place) is not _StorageInfo or not _is_index(index) or not inside or place.transform_descriptors:
        raise pickle.UnpicklingError("the checkpoint's index names a place that is not in its folder")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise pickle.UnpicklingError("the checkpoint's index names an impossible place")


def _are_paths(names: Any) -> bool:
    """Whether these are texts, and the keys of nested dicts that they were joined from."""
    paths = [] if names is None else names.values()
    return all(type(path) is tuple and all(type(part) in (str, int) for part in path) for path in paths)
