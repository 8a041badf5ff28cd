"""Members of a ZIP file: a million of them if need be, read from any thread or process.

Their offsets and sizes are kept in a few arrays (100 MB for a million), which are saved, loaded and handed to another
process in half a second. The objects of `zipfile` take a gigabyte and half a minute each time, and share one file
position between threads; so `zipfile` only lists the members, once, and they are read here by their offsets.
"""

import os
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np

from edm2.post_hoc_ema.files import first_line
from edm2.training.data.archive.files import (
    DatasetError,
    check_size,
    is_litter,
    is_of_dataset,
    kind_of_litter,
    normalized,
    retry_from,
)
from edm2.training.data.archive.retry import retry

LOCAL_HEADER = 30
"""Bytes before a member's name, extra field and contents; the lengths of the first two are its last four bytes."""

ENCRYPTED = 1
"""Bit of a member's flags."""


class Names(Sequence[str]):
    """Many strings in one block of UTF-8, whose bytes sort as the strings do.

    Args:
        block: Bytes of all strings.
        starts: Offset of the first byte of each string, int64 [N].
        ends: Offset behind its last byte, int64 [N].
    """

    def __init__(self, block: bytes, starts: np.ndarray, ends: np.ndarray) -> None:
        self.block = block
        self.starts = starts
        self.ends = ends

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        """Pack strings."""
        encoded = [name.encode() for name in names]
        lengths = np.array([len(name) for name in encoded], dtype=np.int64)
        return cls.laid_end_to_end(b"".join(encoded), np.cumsum(lengths))

    @classmethod
    def laid_end_to_end(cls, block: bytes, ends: np.ndarray) -> "Names":
        """Unpack strings without gaps between them."""
        return cls(block, np.concatenate([[0], ends])[:-1].astype(np.int64), ends)

    def take(self, rows: np.ndarray | slice) -> "Names":
        """Select some of the names; the bytes are shared."""
        return Names(self.block, self.starts[rows], self.ends[rows])

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [*self.take(index)]
        return self.block[self.starts[index] : self.ends[index]].decode()

    def __iter__(self) -> Iterator[str]:
        bounds = zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        return (self.block[start:end].decode() for start, end in bounds)


@dataclass(frozen=True, eq=False)
class Members:
    """Directory of a ZIP, sorted by name: M members, without litter and folders."""

    names: Names
    """Names relative to the root of the dataset, as `relative_names` makes them of those in the file."""
    offset: np.ndarray
    """Offset of the local header in the file, int64 [M]."""
    packed: np.ndarray
    """Bytes in the file, int64 [M]."""
    size: np.ndarray
    """Bytes of the contents, int64 [M]."""
    crc: np.ndarray
    """CRC-32 of the contents, uint32 [M]."""
    method: np.ndarray
    """Method of compression, uint16 [M]."""
    flags: np.ndarray
    """uint16 [M]."""
    litter: Counter[str] = field(default_factory=Counter)
    """Number of files and folders of each `kind_of_litter`; none are known of a directory that an index gave."""

    def row(self, name: str) -> int:
        """Row of a name. Raises KeyError if there is none."""
        row = bisect_left(self.names, name)
        if row == len(self.names) or self.names[row] != name:
            raise KeyError(name)
        return row


def read_members(path: Path) -> Members:
    """Read the directory of a ZIP; a million entries take some ten seconds."""
    try:
        members = retry_from(path, lambda: _list_members(path))
    except DatasetError:
        raise
    except Exception as error:  # mostly BadZipFile, but a damaged directory can raise almost anything
        raise DatasetError(
            f"{path}: not a ZIP file, or cut short ({first_line(error)}); copy or write it anew"
        ) from error
    repeated = sorted({name for name, following in pairwise(members.names) if name == following})
    if repeated:
        raise DatasetError(
            f"{path}: holds {len(repeated)} names more than once, the first is {repeated[0]}; write it anew"
        )
    return members


def _list_members(path: Path) -> Members:
    with ZipFile(path) as archive:
        stored = archive.infolist()
    relative = relative_names([info.filename for info in stored])
    named = sorted((name, row) for row, name in enumerate(relative) if name is not None)
    infos = [stored[row] for _, row in named]

    def column(attribute: str, dtype: type[np.generic]) -> np.ndarray:
        return np.array([getattr(info, attribute) for info in infos], dtype=dtype)

    return Members(
        Names.of([name for name, _ in named]),
        column("header_offset", np.int64),
        column("compress_size", np.int64),
        column("file_size", np.int64),
        column("CRC", np.uint32),
        column("compress_type", np.uint16),
        column("flag_bits", np.uint16),
        _count_litter(info.filename for info, name in zip(stored, relative, strict=True) if name is None),
    )


def _count_litter(stored: Iterable[str]) -> Counter[str]:
    """Number of each kind of litter among members; a folder of it counts once."""
    found = set()
    for name in map(normalized, stored):
        parts = name.split("/")
        ends = [depth for depth, part in enumerate(parts, 1) if is_litter(part)]
        if ends:
            found.add("/".join(parts[: ends[0]]) + "/" * (ends[0] < len(parts)))
    return Counter(kind_of_litter(path.split("/")[-1] or path.split("/")[-2] + "/") for path in found)


def relative_names(stored: Sequence[str]) -> list[str | None]:
    """Names of members relative to the root of the dataset; None for folders and litter.

    The root is the folder that wraps everything, where there is one: programs that pack a folder put its name in front.
    A folder of a ZIP that holds nothing but images is such a wrapper, not a class.
    """
    names = [normalized(name) for name in stored]
    kept = [None if name.endswith("/") or any(map(is_litter, name.split("/"))) else name for name in names]
    while (wrapper := _common_folder(kept)) is not None:  # a README beside it is left out
        kept = [name[len(wrapper) :] if name is not None and name.startswith(wrapper) else None for name in kept]
    return kept


def _common_folder(names: Sequence[str | None]) -> str | None:
    """Top folder, with a slash at its end, that all files of a dataset are in; None if there is none, or several."""
    of_dataset = (name for name in names if name is not None and is_of_dataset(name))
    tops = {name.partition("/")[0] if "/" in name else None for name in of_dataset}
    only = tops.pop() if len(tops) == 1 else None
    return None if only is None else f"{only}/"


def stored_name(stored: Sequence[str], name: str) -> str:
    """Name in the file of the member that is called `name` relative to the root; also of one that is not there yet."""
    relative = relative_names(stored)
    if name in relative:
        return stored[relative.index(name)]
    wrapped, known = next(
        ((normalized(whole), part) for whole, part in zip(stored, relative, strict=True) if part is not None), ("", "")
    )
    return wrapped.removesuffix(known) + name


class ZipFiles:
    """Members of a ZIP file."""

    def __init__(self, path: Path, members: Members | None = None) -> None:
        self.path = path
        self._members = members
        self._file: BinaryIO | None = None

    @property
    def litter(self) -> Counter[str]:
        return self.members.litter

    @property
    def members(self) -> Members:
        """Directory of the file. Raises DatasetError if it cannot be used."""
        if self._members is None:
            self._members = read_members(self.path)
        return self._members

    def names(self) -> list[str]:
        return [*self.members.names]

    def stamps(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Size and checksum of each member. Raises DatasetError for a missing name."""
        members = self.members
        try:
            rows = [members.row(name) for name in names]
        except KeyError as error:
            raise DatasetError(f"{self.path}/{error.args[0]}: not in the ZIP; copy or write it anew") from None
        return list(zip(members.size[rows].tolist(), members.crc[rows].tolist(), strict=True))

    contents = stamps

    def read(self, name: str) -> bytes:
        """Contents of a member. Raises KeyError, ValueError, OSError or zlib.error if missing or damaged."""
        members = self.members
        row = self._readable_row(name)
        check_size(max(int(members.packed[row]), int(members.size[row])))  # a small file can unpack to any size
        data = retry(lambda: self._read_packed(row), f"{self.path}/{name}")
        if members.method[row] == ZIP_DEFLATED:  # at most a byte more than expected: it could unpack to any size
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, int(members.size[row]) + 1)
        # The checksum decides: a damaged name in the local header does not matter.
        if len(data) != members.size[row] or zlib.crc32(data) != members.crc[row]:
            raise ValueError("Bad CRC-32: damaged, copy or write the ZIP anew")
        return data

    def head(self, name: str, count: int) -> bytes:
        """First bytes of a member, whose checksum is not looked at. Raises as `read`."""
        row = self._readable_row(name)
        data = retry(lambda: self._read_packed(row, count), f"{self.path}/{name}")
        return (
            data
            if self.members.method[row] == ZIP_STORED
            else zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, count)
        )

    def _readable_row(self, name: str) -> int:
        members = self.members
        row = members.row(name)
        if members.flags[row] & ENCRYPTED or members.method[row] not in (ZIP_STORED, ZIP_DEFLATED):
            raise ValueError("encrypted, or compressed in an unusual way; write the ZIP anew, stored or deflated")
        return row

    def _read_packed(self, row: int, most: int | None = None) -> bytes:
        """Bytes of a member as they are in the file, at most so many."""
        offset, packed = int(self.members.offset[row]), int(self.members.packed[row])
        try:
            header = self._read_at(offset, LOCAL_HEADER)
            if not header.startswith(b"PK\3\4"):
                raise ValueError("not where the directory says: damaged, copy or write the ZIP anew")
            name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
            return self._read_at(offset + LOCAL_HEADER + name + extra, min(packed, most or packed))
        except OSError:
            self._file = None  # the next attempt opens it anew: this may be a stale handle of a network file system
            raise

    def _read_at(self, offset: int, count: int) -> bytes:
        """Read at an offset without moving the file's position, which threads and forked processes share."""
        file = self._file  # held, so that another thread that opens it too does not close this one
        if file is None:
            file = self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115, closed with this object
        if offset + count > os.fstat(file.fileno()).st_size:  # asked before memory for a nonsensical size is
            raise ValueError("the ZIP is cut short; copy or write it anew")
        if hasattr(os, "pread"):
            return os.pread(file.fileno(), count, offset)
        with open(self.path, "rb") as own:  # Windows
            own.seek(offset)
            return own.read(count)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}
