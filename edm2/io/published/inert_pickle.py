"""Pickles read as data: nothing in them is ever imported, called or built.

A pickle is a program for a small stack machine. The standard library's machine runs here with only those instructions
that arrays, texts and numbers in lists and dicts need. Where the program would import a name, it gets a `Global`, which
is inert; where it would call that, a maker of ours, registered for the name, turns the arguments into a plain value. So
no callable is ever on the machine's stack. Every other name or instruction is refused, wherever it stands.

An untrusted pickle can also eat memory or time. So keys are texts (whose hashes cannot be made to collide), byte
strings stay in the file, reads and their bytes are counted, and nothing here recurses.
"""

import os
import pickle
import pickletools
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

Maker = Callable[..., Any]

MAX_READS = 1 << 20
"""Reads that the pickles in a file may take, one to three per instruction; enough for three thousand tensors."""

MAX_BYTES = 16 << 20
"""Bytes of instructions, numbers and text in a file."""

MAX_NAME = 200
"""Bytes of the name of a module or a global."""


class PickleRefused(ValueError):
    """Not a pickle of the kind that is expected; the message completes "it is refused because it ..."."""


@dataclass(frozen=True)
class Global:
    """Name of something that the pickle's author would have had imported: module and name, with a dot between."""

    name: str


@dataclass(frozen=True)
class ByteString:
    """Bytes that stay in the file."""

    offset: int
    size: int


class Buildable(ABC):
    """Value made by a maker and filled in later by the instruction BUILD."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Take in the state; raises PickleRefused if that is malformed."""


class PickleFile:
    """A file as the machine reads it: short reads are errors, byte strings are skipped, and there is a budget.

    Args:
        file: Seekable; pickles are read from where it stands.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.reads_left, self.bytes_left = MAX_READS, MAX_BYTES
        position = file.tell()
        self.end = file.seek(0, os.SEEK_END)
        file.seek(position)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        self._spend(size)
        data = self.file.read(size)
        if len(data) < size:
            raise PickleRefused("ends too early: it is truncated, or not what it seems")
        return data

    def readline(self) -> bytes:
        """A name with the line break behind it."""
        line = self.file.readline(MAX_NAME)
        self._spend(len(line))
        if not line.endswith(b"\n"):
            raise PickleRefused("has a name without an end")
        return line

    def skip(self, size: int) -> ByteString:
        """Pass a byte string."""
        offset = self.file.tell()
        if offset + size > self.end:
            raise PickleRefused("ends too early: it is truncated, or not what it seems")
        self.file.seek(offset + size)
        return ByteString(offset, size)

    def _spend(self, size: int) -> None:
        self.reads_left -= 1
        self.bytes_left -= size
        if min(self.reads_left, self.bytes_left) < 0:
            raise PickleRefused("has more instructions or text than any network needs")


class TextDict(dict):
    """A dict with texts as keys: numbers can be chosen so that all collide, and tuples are hashed recursively."""

    def __setitem__(self, key: Any, value: Any) -> None:
        check_text(key)
        super().__setitem__(key, value)


class TextSet(set):
    """A set of texts, for the same reasons."""

    def update(self, values: list[Any]) -> None:  # type: ignore[override]  # as the machine calls it
        for value in values:
            check_text(value)
        super().update(values)


def check_text(value: Any) -> None:
    """Raise PickleRefused unless this is a text."""
    if type(value) is not str:
        raise PickleRefused("has keys that are no texts")


CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}

AS_THEY_ARE = (
    *("PROTO", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL"),
    *("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND"),
    *("APPENDS", "ADDITEMS", "SETITEM", "SETITEMS", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
"""Instructions that the standard library runs: they put plain values on the stack, into containers or into the memo."""


class Instructions(dict):
    """Implementations of instructions by code; missing ones are refused."""

    def __missing__(self, code: int) -> None:
        name = next((name for name, known in CODES.items() if known == code), f"{code:#04x}")
        raise PickleRefused(f"has the pickle instruction {name}, which no file of arrays needs")


class InertUnpickler(pickle._Unpickler):
    """Machine for one pickle; `read_pickle` runs it."""

    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    load_binpersid: ClassVar[Callable[[Any], None]]

    def __init__(self, file: PickleFile, makers: Mapping[str, Maker | None], persistent_load: Maker | None) -> None:
        super().__init__(file)
        self.file = file
        self.makers = makers
        if persistent_load is not None:
            self.persistent_load = persistent_load  # type: ignore[method-assign]  # as pickle's own documentation does
            more = {CODES["BINPERSID"]: InertUnpickler.load_binpersid}
            self.dispatch = Instructions(self.dispatch | more)  # type: ignore[misc]  # of this machine alone

    def find_class(self, module: str, name: str) -> Global:
        """GLOBAL, STACK_GLOBAL: the name of what the pickle would import, if it is one of those expected."""
        found = Global(f"{module}.{name}")
        if found.name not in self.makers:
            raise PickleRefused(f"asks for the global {shown(found.name)}, which no file of this kind needs")
        return found

    def load_reduce(self) -> None:
        """REDUCE, NEWOBJ: what our maker makes of the arguments."""
        arguments, function = self.stack.pop(), self.stack.pop()
        maker = self.makers[function.name] if isinstance(function, Global) else None
        if maker is None or not isinstance(arguments, tuple):
            raise PickleRefused("calls something that is no function")
        self.append(maker(*arguments))

    def load_build(self) -> None:
        """BUILD: hand the state to a value that waits for one."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Buildable):
            raise PickleRefused("gives a state to something that has none")
        self.stack[-1].build(state)

    def load_bytes(self, form: str) -> None:
        """SHORT_BINBYTES, BINBYTES, BINBYTES8: leave them in the file."""
        [size] = struct.unpack(form, self.read(struct.calcsize(form)))
        self.append(self.file.skip(size))

    dispatch = Instructions({CODES[name]: pickle._Unpickler.dispatch[CODES[name]] for name in AS_THEY_ARE} | {
        CODES["FRAME"]: lambda self: self.read(8),  # a size; what is in a frame is read as if there were none
        CODES["REDUCE"]: load_reduce,
        CODES["NEWOBJ"]: load_reduce,
        CODES["BUILD"]: load_build,
        CODES["EMPTY_DICT"]: lambda self: self.append(TextDict()),
        CODES["EMPTY_SET"]: lambda self: self.append(TextSet()),
        CODES["SHORT_BINBYTES"]: lambda self: self.load_bytes("<B"),
        CODES["BINBYTES"]: lambda self: self.load_bytes("<I"),
        CODES["BINBYTES8"]: lambda self: self.load_bytes("<Q"),
    })  # fmt: skip


def read_pickle(file: PickleFile, makers: Mapping[str, Maker | None], persistent_load: Maker | None = None) -> Any:
    """Read one pickle from where the file stands, and leave the file right behind it.

    Args:
        file: Its budget is shared by all pickles in it.
        makers: For every name that may occur, what makes a value of the arguments it is called with; None for names
            that may occur, but not be called.
        persistent_load: Makes a value of a persistent id; None where there must not be any.

    Returns:
        None, bool, int, float, str, `Global`, `ByteString`, what the makers make, and tuples, lists, dicts and sets of
        these. It may contain itself.

    Raises:
        PickleRefused: a name, an instruction or a size that is not allowed, or not a pickle at all.
    """
    try:
        return InertUnpickler(file, makers, persistent_load).load()
    except UnicodeDecodeError:
        raise PickleRefused("has text that is not UTF-8") from None
    except PickleRefused:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        # Instructions in an order that makes no sense, such as one that takes values which are not there.
        raise PickleRefused(f"is damaged: {shown(str(error))}") from None


def shown(text: str, limit: int = 80) -> str:
    """Untrusted text for an error message: short, and without characters that a terminal obeys."""
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text if text.isprintable() else ascii(text)
