"""Pickles read as data: nothing in them is ever imported, called or built.

A pickle is a program for a small stack machine; `pickletools` describes every instruction. This reader runs the few
that arrays, texts and numbers in lists and dicts need. Where the program would import a name it gets an inert `Global`,
where it would call that name, a function of ours that the caller of this module registered for it. Every other name or
instruction is refused, wherever it stands.

A stranger's pickle can also be made to eat memory or time. So keys are texts (whose hashes cannot be made to collide),
byte strings stay in the file, instructions and text are counted, and nothing here recurses.
"""

import pickletools
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

Maker = Callable[..., Any]

OPCODES = {ord(code): opcode.name for code, opcode in pickletools.code2op.items()}

FIXED = {
    "PROTO": "<B", "FRAME": "<Q", "BINGET": "<B", "LONG_BINGET": "<I", "BINPUT": "<B", "LONG_BINPUT": "<I",
    "BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d",
}  # fmt: skip
"""Instructions followed by one number, and its form."""

COUNTED = {
    "SHORT_BINUNICODE": "<B", "BINUNICODE": "<I", "BINUNICODE8": "<Q",
    "SHORT_BINBYTES": "<B", "BINBYTES": "<I", "BINBYTES8": "<Q", "LONG1": "<B",
}  # fmt: skip
"""Instructions followed by a number of bytes, and as many bytes."""

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleRefused(ValueError):
    """Not a pickle of the kind that is expected; the message completes "it is refused because it ..."."""


@dataclass(frozen=True)
class Global:
    """The name of something that the pickle's author would have had imported."""

    name: str
    """Module and name, with a dot between them."""


@dataclass(frozen=True)
class ByteString:
    """A byte string, where it lies in the file."""

    offset: int
    size: int


class Buildable(ABC):
    """Something made that is filled in later (instruction BUILD)."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Take in what the pickle gives as its state; raises PickleRefused if that is malformed."""


@dataclass
class Budget:
    """What a pickle may still use; shared by the pickles inside it."""

    instructions: int = 1 << 19
    """Enough for two thousand tensors."""
    text: int = 16 << 20
    """Bytes of text."""

    def spend(self, instructions: int = 0, text: int = 0) -> None:
        """Take away, or raise PickleRefused if there is not enough left."""
        self.instructions -= instructions
        self.text -= text
        if min(self.instructions, self.text) < 0:
            what = "instructions" if self.instructions < 0 else "text"
            raise PickleRefused(f"has more {what} than any network needs")


class PickleReader:
    """Reads one pickle from where the file stands, and leaves the file right behind it.

    Args:
        file: Seekable.
        end: Offset that nothing may reach beyond.
        makers: For every name that may occur, what makes an inert value of the arguments it is called with; None for
            names that may occur, but not be called.
        persistent_id: Makes a value of a persistent id; None where there must not be any.
        budget: What may be used.
    """

    def __init__(
        self,
        file: BinaryIO,
        end: int,
        makers: Mapping[str, Maker | None],
        persistent_id: Maker | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.file = file
        self.left = end - file.tell()  # bytes; asking the file for its position each time would double the time
        self.makers = makers
        self.persistent_id = persistent_id
        self.budget = budget or Budget()
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The value of the pickle: None, bool, int, float, str, `Global`, `ByteString`, whatever the makers make, and
        tuples, lists, dicts and sets of these. It may contain itself.

        Raises:
            PickleRefused: a name, an instruction or a size that is not allowed, or not a pickle at all.
        """
        while True:
            self.budget.spend(instructions=1)
            code = self._take(1)[0]
            name = OPCODES.get(code, f"{code:#04x}")
            if name == "STOP":
                return self._pop()
            self._run(name, self._argument(name))

    # ------------------------------------------------------------------------------------------------ the file

    def _take(self, count: int) -> bytes:
        """The next bytes."""
        self._pass(count)
        data = self.file.read(count)
        if len(data) < count:
            raise PickleRefused("ends too early: it is truncated")
        return data

    def _pass(self, count: int) -> None:
        """Note that so many bytes are about to be passed."""
        self.left -= count
        if self.left < 0:
            raise PickleRefused("ends too early: it is truncated, or not what it seems")

    def _argument(self, name: str) -> Any:
        """What follows the instruction in the file."""
        if name in FIXED:
            return self._number(FIXED[name])
        if name in COUNTED:
            return self._counted(name, self._number(COUNTED[name]))
        if name == "GLOBAL":
            return self._line(), self._line()
        return None

    def _number(self, form: str) -> Any:
        [value] = struct.unpack(form, self._take(struct.calcsize(form)))
        return value

    def _counted(self, name: str, count: int) -> Any:
        if "BYTES" in name:
            self._pass(count)
            place = ByteString(self.file.tell(), count)
            self.file.seek(place.offset + count)
            return place
        if name == "LONG1":
            return int.from_bytes(self._take(count), "little", signed=True)
        self.budget.spend(text=count)
        return self._decode(self._take(count))

    def _line(self) -> str:
        """Text up to a line break, as long as a name may be."""
        line = self.file.readline(200)
        self._pass(len(line))
        if not line.endswith(b"\n"):
            raise PickleRefused("has a name without an end")
        return self._decode(line[:-1])

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise PickleRefused("has text that is not UTF-8") from None

    # ------------------------------------------------------------------------------------------------ the machine

    def _run(self, name: str, argument: Any) -> None:
        """Do what an instruction says."""
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "MEMOIZE":
                self.memo[len(self.memo)] = self._top()
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self._top()
            case "APPEND":
                self._extend([self._pop()])
            case "APPENDS":
                self._extend(self._since_mark())
            case "ADDITEMS":
                self._add(self._since_mark())
            case "SETITEM":
                self._set_items([self._pop(), self._pop()][::-1])
            case "SETITEMS":
                self._set_items(self._since_mark())
            case "BUILD":
                self._build(self._pop())
            case _:
                self.stack.append(self._new_value(name, argument))

    def _new_value(self, name: str, argument: Any) -> Any:
        """What an instruction puts on the stack."""
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in CONTAINERS:
            return CONTAINERS[name]()
        if name in TUPLES:
            return tuple([self._pop() for _ in range(TUPLES[name])][::-1])
        match name:
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT":
                return argument
            case "BINGET" | "LONG_BINGET":
                return self._remembered(argument)
            case "TUPLE":
                return tuple(self._since_mark())
            case "GLOBAL":
                return self._global(*argument)
            case "STACK_GLOBAL":
                return self._global(*[self._pop(), self._pop()][::-1])
            case "REDUCE" | "NEWOBJ":
                return self._make(*[self._pop(), self._pop()][::-1])
            case "BINPERSID" if self.persistent_id is not None:
                return self.persistent_id(self._pop())
            case _ if name in COUNTED:
                return argument
        raise PickleRefused(f"has the pickle instruction {name}, which no file of arrays needs")

    def _top(self) -> Any:
        if not self.stack:
            raise PickleRefused("is damaged: it takes values that are not there")
        return self.stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        del self.stack[-1]
        return value

    def _since_mark(self) -> list[Any]:
        """Take off the values above the last mark, and the mark."""
        if not self.marks:
            raise PickleRefused("is damaged: it takes values that are not there")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _remembered(self, index: int) -> Any:
        if index not in self.memo:
            raise PickleRefused("is damaged: it refers to a value that is not there")
        return self.memo[index]

    def _global(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleRefused("is damaged: a name to import is no text")
        found = Global(f"{module}.{name}")
        if found.name not in self.makers:
            raise PickleRefused(f"asks for the global {shown(found.name)}, which no file of this kind needs")
        return found

    def _make(self, function: Any, arguments: Any) -> Any:
        maker = self.makers[function.name] if isinstance(function, Global) else None
        if maker is None or not isinstance(arguments, tuple):
            raise PickleRefused("calls something that is no function")
        return maker(*arguments)

    def _build(self, state: Any) -> None:
        target = self._top()
        if not isinstance(target, Buildable):
            raise PickleRefused("gives a state to something that has none")
        target.build(state)

    def _extend(self, values: list[Any]) -> None:
        self._target(list).extend(values)

    def _add(self, values: list[Any]) -> None:
        check_texts(values)
        self._target(set).update(values)

    def _set_items(self, values: list[Any]) -> None:
        keys = values[::2]
        check_texts(keys)
        if len(values) % 2:
            raise PickleRefused("is damaged: a key without a value")
        self._target(dict).update(zip(keys, values[1::2], strict=True))

    def _target(self, kind: type) -> Any:
        """The container on top of the stack, to be filled."""
        if type(self._top()) is not kind:
            raise PickleRefused(f"is damaged: it fills a {kind.__name__} that is none")
        return self.stack[-1]


def check_texts(values: list[Any]) -> None:
    """Numbers can be chosen so that all of them collide in a dict, and tuples are hashed recursively; texts cannot."""
    if not all(type(value) is str for value in values):
        raise PickleRefused("has keys that are no texts")


def shown(text: str, limit: int = 80) -> str:
    """A stranger's text for an error message: short, and without characters that a terminal obeys."""
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text if text.isprintable() else ascii(text)
