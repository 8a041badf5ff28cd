"""Pickles read as data: nothing in them is ever imported, called or built.

A pickle is a program for a small stack machine. The standard library's machine runs here with only those instructions
that arrays, texts and numbers in lists and dicts need. Where the program would import a name or call it, it gets a
`Call`, which records that and is inert, so no callable is ever on the machine's stack. Other names and instructions are
refused, wherever they stand.

An untrusted pickle can also eat memory or time. So keys are texts (whose hashes cannot be made to collide), byte
strings stay in the file, reads and their bytes are counted, and nothing here recurses.
"""

import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

NAMES = frozenset((
    "collections.OrderedDict", "dnnlib.util.EasyDict", "torch.nn.modules.container.ModuleDict",
    "torch_utils.persistence._reconstruct_persistent_obj", "torch.storage._load_from_bytes",
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.HalfStorage", "torch.BFloat16Storage",
    "torch.FloatStorage", "torch.DoubleStorage", "numpy.ndarray", "numpy.dtype", "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
))  # fmt: skip
"""Names that a published pickle may mention."""

DICTS = ("collections.OrderedDict", "dnnlib.util.EasyDict")
"""Names of dicts, which are called without arguments and filled in later."""

INSTRUCTIONS = (
    *("PROTO", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL"),
    *("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND"),
    *("APPENDS", "SETITEM", "SETITEMS", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINPERSID"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
"""Instructions that the standard library runs: they put plain values on the stack, into containers or into the memo."""

BUDGET = 32 << 20
"""Bytes of instructions, numbers and text in a file, 32 more for each read; EDM2's networks need a tenth."""


class PickleRefused(ValueError):
    """Not a pickle of the kind that is expected; the message completes "it is refused because it ..."."""


@dataclass(eq=False)
class Call:
    """A name that the pickle's author would have had imported, and what it would have been called with; inert."""

    name: str
    arguments: tuple[Any, ...] | None = None
    """None for a name that is not called."""
    state: Any = None
    """Attributes that the result would have been given."""


@dataclass(frozen=True)
class ByteString:
    """Bytes that stay in the file."""

    offset: int
    size: int


class PickleFile:
    """A file as the machine reads it: short reads are errors, byte strings are skipped, and there is a budget."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.budget = BUDGET
        self.calls: list[Call] = []
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes."""
        self.budget -= size + 32
        if self.budget < 0:
            raise PickleRefused("has more instructions or text than any network needs")
        data = self.file.read(size)
        if len(data) < size:
            raise PickleRefused("ends too early: it is truncated, or not what it seems")
        return data

    def readline(self) -> bytes:
        """Read a name with the line break behind it."""
        return b"".join(iter(lambda: self.read(1), b"\n")) + b"\n"

    def skip(self, size: int) -> ByteString:
        """Pass a byte string."""
        string = ByteString(self.file.tell(), size)
        if string.offset + size > self.size:
            raise PickleRefused("ends too early: it is truncated, or not what it seems")
        self.file.seek(size, os.SEEK_CUR)
        return string


class TextDict(dict):
    """A dict with texts as keys: numbers can be chosen so that all collide, and tuples are hashed recursively."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is not str:
            raise PickleRefused("has keys that are no texts")
        super().__setitem__(key, value)


CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}


class Dispatch(dict):
    """Implementations of instructions by code; missing ones are refused."""

    def __missing__(self, code: int) -> None:
        name = next((name for name, known in CODES.items() if known == code), f"{code:#04x}")
        raise PickleRefused(f"has the pickle instruction {name}, which no file of arrays needs")


class InertUnpickler(pickle._Unpickler):
    """Machine for one pickle; `read_pickle` runs it."""

    stack: list[Any]
    read: Callable[[int], bytes]

    def __init__(self, file: PickleFile) -> None:
        super().__init__(file)
        self.file = file

    def find_class(self, module: str, name: str) -> Call:
        """GLOBAL, STACK_GLOBAL: record what the pickle would import."""
        if f"{module}.{name}" not in NAMES:
            raise PickleRefused(f"asks for the global {shown(f'{module}.{name}')}, which no file of this kind needs")
        return Call(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Call:
        """BINPERSID: record the identifier of what is stored elsewhere."""
        return Call("persistent", (pid,))

    def load_reduce(self) -> None:
        """REDUCE, NEWOBJ: record what the pickle would call."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not (isinstance(function, Call) and function.arguments is None and isinstance(arguments, tuple)):
            raise PickleRefused("calls something that is no function")
        if function.name in DICTS and not arguments:
            self.stack.append(TextDict())
        else:
            self.stack.append(Call(function.name, arguments))
            self.file.calls.append(self.stack[-1])

    def load_build(self) -> None:
        """BUILD: record the attributes that the pickle would set."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Call):
            raise PickleRefused("gives a state to something that has none")
        self.stack[-1].state = state

    def load_bytes(self, form: str) -> None:
        """SHORT_BINBYTES, BINBYTES, BINBYTES8: leave them in the file."""
        [size] = struct.unpack(form, self.read(struct.calcsize(form)))
        self.stack.append(self.file.skip(size))

    dispatch = Dispatch({CODES[name]: pickle._Unpickler.dispatch[CODES[name]] for name in INSTRUCTIONS} | {
        CODES["FRAME"]: lambda self: self.read(8),  # a size; what is in a frame is read as if there were none
        CODES["REDUCE"]: load_reduce,
        CODES["NEWOBJ"]: load_reduce,
        CODES["BUILD"]: load_build,
        CODES["EMPTY_DICT"]: lambda self: self.append(TextDict()),
        CODES["EMPTY_SET"]: lambda self: self.append(frozenset()),  # of names; there are never any in it
        CODES["SHORT_BINBYTES"]: lambda self: self.load_bytes("<B"),
        CODES["BINBYTES"]: lambda self: self.load_bytes("<I"),
        CODES["BINBYTES8"]: lambda self: self.load_bytes("<Q"),
    })  # fmt: skip


def read_pickle(file: PickleFile) -> Any:
    """Read one pickle from where the file stands, and leave the file right behind it.

    Args:
        file: Its budget is shared by all pickles in it.

    Returns:
        None, bool, int, float, str, `Call`, `ByteString`, and tuples, lists and dicts of these. It may contain itself.
    """
    try:
        return InertUnpickler(file).load()
    except PickleRefused:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        # Instructions in an order that makes no sense, such as one that takes values which are not there.
        raise PickleRefused(f"is damaged: {shown(str(error))}") from None


def shown(text: str, limit: int = 80) -> str:
    """Untrusted text for an error message: short, and without characters that a terminal obeys."""
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text if text.isprintable() else ascii(text)
