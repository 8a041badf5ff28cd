"""Damaged and malicious files: changes to bytes, JSON, pickles and file formats.

Every function takes a `random.Random`, so that the same seed makes the same file on every machine.
"""

import copy
import io
import json
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

EVIL_NAMES = (
    "../../evil.png", "/evil.png", "..\\..\\evil.png", "C:\\evil.png", "a/../../../evil.png", "./evil.png",
    "evil\n\x1b[31m.png", "evil\u202e.png", "e" * 60_000 + ".png", "", "/", "evil.png/", "dir/evil.npy", ".png",
    "00000/../dataset.json", "dataset.json/evil.png", "//evil.png", "con.png",
)  # fmt: skip

NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


class Attack:
    """A pickle of this runs a command when it is loaded carelessly; the sandbox sees the file that it makes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch PWNED",)


# ------------------------------------------------------------------------------------------------ bytes


def mangled(data: bytes, random: Random) -> bytes:
    """Some bytes changed, lost, added, moved or replaced."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        start = _offset(changed, random)
        match random.choice(("flip", "flip", "flip", "cut", "lose", "add", "overwrite", "number", "number", "all")):
            case "flip" if changed:
                for _ in range(random.choice((1, 1, 4, 32))):
                    changed[_offset(changed, random)] ^= 1 << random.randrange(8)
            case "cut":
                del changed[start:]
            case "lose":
                del changed[start : start + random.choice((1, 2, 7, 64, 1000))]
            case "add":
                repeated = bytes(changed[start : start + 50])
                changed[start:start] = random.choice((b"\0" * 40, random.randbytes(16), b"\xff" * 9, repeated))
            case "overwrite":
                piece = random.choice((b"\0" * 8, b"\xff" * 8, random.randbytes(4), bytes(changed[:8])))
                changed[start : start + len(piece)] = piece
            case "number":  # a length, an offset or a count, perhaps
                form = random.choice(("<I", ">I", "<Q", ">Q", "<H", ">H"))
                size = struct.calcsize(form)
                value = random.choice((*NUMBERS, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)) % (1 << (8 * size))
                changed[start : start + size] = struct.pack(form, value)
            case "all":
                changed[:] = random.choice((b"", b"\0" * len(changed), b"PK\3\4", b"{}", b"\x80\x04N.", b"\n"))
    return bytes(changed)


def _offset(data: bytearray, random: Random) -> int:
    """Anywhere, but often where headers are: near the start, or the end."""
    size = max(1, len(data))
    near = random.randrange(min(size, 64))
    return random.choice((random.randrange(size), near, size - 1 - near))


# ------------------------------------------------------------------------------------------------ JSON

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 10**6, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", "x", "0", "nan", "../../evil", "/etc/passwd", "\x1b[2J\n\u202e",
    "\ud800", "x" * 100_000, [], {}, [[]], [None], {"": {}}, [0] * 1000, ["a", 0], [-1, 2], "fp32", "G", "pixels",
)  # fmt: skip


def changed_json(value: Any, random: Random) -> Any:
    """A copy with one or some of the values in it, however deep, replaced, removed, added or renamed."""
    changed = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        changed = _change_once(changed, random)
    return changed


def _change_once(value: Any, random: Random) -> Any:
    holders = [holder for holder in _holders(value) if holder]
    if not holders or random.random() < 0.05:
        return random.choice(VALUES)
    holder = random.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    key = random.choice(list(keys))
    match random.choice(("replace", "replace", "replace", "remove", "add", "swap", "nest")):
        case "remove":
            del holder[key]
        case "add" if isinstance(holder, dict):
            holder[random.choice(("surprise", "", "__class__", "\x1b[31m", str(key).upper()))] = random.choice(VALUES)
        case "swap":
            other = random.choice(list(keys))
            holder[key], holder[other] = holder[other], holder[key]
        case "nest":
            holder[key] = random.choice(([holder[key]], {"": holder[key]}, DEEP))
        case _:
            holder[key] = copy.deepcopy(random.choice(VALUES))
    return value


def _holders(value: Any) -> list[Any]:
    """Dicts and lists in a value, however deep."""
    if not isinstance(value, dict | list):
        return []
    inside = value.values() if isinstance(value, dict) else value
    return [value, *(holder for item in inside for holder in _holders(item))]


def json_text(value: Any, random: Random) -> bytes:
    """JSON of a changed value, or text that is nearly JSON."""
    if random.random() < 0.2:
        return mangled(json.dumps(value).encode(), random)
    if random.random() < 0.15:
        return random.choice(TEXTS)
    return dumped(changed_json(value, random))


DEEP = "as deep as it gets"


def dumped(value: Any) -> bytes:
    """JSON; in the place of `DEEP`, more lists inside each other than `json` itself would write."""
    return json.dumps(value).encode().replace(json.dumps(DEEP).encode(), b"[" * 50_000 + b"]" * 50_000)


TEXTS = (
    b"", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b"nan", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b'"',
    b'{"labels": ' + b"[" * 3000 + b"]" * 3000 + b"}", b'{"network": {}, "network": 3}', b'{"\\ud800": "\\ud800"}',
    b"{}", b"[]", b"0", b"null",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ safetensors


def changed_safetensors(data: bytes, random: Random) -> bytes:
    """Its header, the metadata inside it, or any bytes."""
    choice = random.random()
    if choice < 0.3:
        return mangled(data, random)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if choice < 0.8:
        metadata = json.loads(header["__metadata__"]["edm2"])
        header["__metadata__"]["edm2"] = json_text(metadata, random).decode("utf-8", "replace")
    else:
        header = changed_json(header, random)
    text = dumped(header)
    announced = len(text) if random.random() < 0.95 else random.choice((*NUMBERS, 1 << 63, len(text) - 1))
    return struct.pack("<Q", announced) + text + data[8 + length :]


# ------------------------------------------------------------------------------------------------ images and arrays


def changed_image(data: bytes, random: Random) -> bytes:
    """Any bytes; of a PNG its chunks too, with checksums that fit, or a bomb."""
    if not data.startswith(b"\x89PNG") or random.random() < 0.4:
        return mangled(data, random)
    chunks = _chunks(data)
    index = random.randrange(len(chunks))
    match random.choice(("field", "field", "chunk", "bomb", "order", "size")):
        case "field":
            kind, body = chunks[index]
            chunks[index] = kind, mangled(body, random)
        case "chunk":
            chunks.insert(random.randrange(1, len(chunks) + 1), random.choice(_extra_chunks()))
        case "bomb":
            chunks[-2] = b"IDAT", zlib.compress(bytes(random.choice((10**6, 10**7, 3 * 10**7))))
        case "order":
            random.shuffle(chunks)
        case "size":
            sides = [random.choice((0, 1, 8, 9, 5000, 20_000, 60_000, 0x7FFFFFFF, 0xFFFFFFFF)) for _ in range(2)]
            chunks[0] = b"IHDR", struct.pack(">II", *sides) + chunks[0][1][8:]
    return data[:8] + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    position, chunks = 8, []
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _extra_chunks() -> list[tuple[bytes, bytes]]:
    bomb = zlib.compress(bytes(50_000_000))
    return [
        (b"iCCP", b"name\0\0" + bomb), (b"zTXt", b"name\0\0" + bomb), (b"iTXt", b"name\0\1\0\0\0" + bomb),
        (b"tEXt", b"a\0" + b"b" * 10_000), (b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 50), (b"tRNS", b"\0" * 3),
        (b"PLTE", b"\0" * 7), (b"acTL", struct.pack(">II", 0xFFFFFFF, 0)), (b"fcTL", b"\0" * 26), (b"fdAT", b"\0" * 9),
        (b"gAMA", b"\0"), (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)), (b"IEND", b""), (b"\xff", b""),
    ]  # fmt: skip


DESCRIPTIONS = (
    "'O'", "'|O'", "'<f8'", "'>f4'", "'<f2'", "'<U100000000'", "'|V8'", "[('a', 'O')]", "'<M8'", "'c16'", "'|b1'",
    "[('a', '<f4', (1000, 1000))]", "'|u1'", "'<f4'", "'q' * 9", "None", "''", "'<i4,<i4'", "'(1000000,)<f4'",
    "{'names': ['a'], 'formats': ['O']}",
)  # fmt: skip
SHAPES = (
    "()", "(0,)", "(-1,)", "(1,)", "(8, 8)", "(1, 8, 8)", "(2, 8, 8)", "(3, 8, 8)", "(1, 8, 8, 1)", "(4, 8, 8, 1)",
    "(4611686018427387904,)", "(1000000, 1000000, 1000)", "(9223372036854775808, 1, 1)", "(1.0, 8, 8)", "('8', 8, 8)",
    "None", "8", "(" * 500 + ")" * 500, "[1, 8, 8]", "(99999999, 8, 8, 1)", "(0, 8, 8, 1)", "(4, 0, 0, 1)",
    "(True, 8, 8)",
)  # fmt: skip


def changed_npy(data: bytes, random: Random) -> bytes:
    """Its header, or any bytes; or an array of objects that would be unpickled."""
    choice = random.random()
    if choice < 0.3:
        return mangled(data, random)
    if choice < 0.4:
        return objects_npy()
    header = (
        f"{{'descr': {random.choice(DESCRIPTIONS)}, 'fortran_order': {random.choice(('False', 'True', '3', 'None'))}, "
        f"'shape': {random.choice(SHAPES)}, }}"
    )
    if choice < 0.5:
        header = random.choice(
            ("", "{", "__import__('os').system('touch PWNED')", "[" * 5000, header[:-20], "{}" + header)
        )
    text = header.encode() + b" " * random.randrange(3) + b"\n"
    version, form = random.choice(
        ((b"\1\0", "<H"), (b"\1\0", "<H"), (b"\2\0", "<I"), (b"\3\0", "<I"), (b"\x09\0", "<H"))
    )
    length = len(text) if random.random() < 0.9 else random.choice(NUMBERS)
    return b"\x93NUMPY" + version + struct.pack(form, length % (1 << 8 * struct.calcsize(form))) + text + data[128:]


def objects_npy() -> bytes:
    """An array of one object, which runs a command when it is unpickled."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([[[Attack()]]], dtype=object), allow_pickle=True)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ ZIP


def hostile_zip(members: Mapping[str, bytes], random: Random) -> bytes:
    """Members under other names, bombs, and a directory that does not tell the truth."""
    named = list(members.items())
    for _ in range(random.choice((0, 1, 1, 2))):
        named.insert(random.randrange(len(named) + 1), (random.choice(EVIL_NAMES), random.choice(named)[1]))
    if random.random() < 0.1:
        bomb = bytes(random.choice((10**6, 2 * 10**7)))
        named.append((random.choice(("bomb.png", "dataset.json", "bomb.npy")), bomb))
    data = bytearray(_zipped(named, random))
    entries = _entries(data)
    match random.choice(("nothing", "directory", "directory", "end", "bytes", "overlap", "before", "after")):
        case "directory" if entries:
            for _ in range(random.choice((1, 1, 3))):
                _put_number(data, random.choice(entries), ENTRY_FIELDS, random)
        case "end":
            _put_number(data, data.rfind(b"PK\5\6"), END_FIELDS, random)
        case "bytes":
            return mangled(bytes(data), random)
        case "overlap":
            for entry in entries:  # all members at the offset of the first
                data[entry + 42 : entry + 46] = data[entries[0] + 42 : entries[0] + 46]
        case "before":
            return random.randbytes(random.choice((1, 100))) + bytes(data)
        case "after":
            return bytes(data) + random.randbytes(random.choice((1, 100, 70_000)))
    return bytes(data)


def _zipped(named: Sequence[tuple[str, bytes]], random: Random) -> bytes:
    buffer = io.BytesIO()
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
    with zipfile.ZipFile(buffer, "w") as archive:
        taken: set[str] = set()
        for name, contents in named:
            info = zipfile.ZipInfo("x")
            info.filename = name or "x"  # as it is: the class would take the harm out of it
            if info.filename not in taken or random.random() < 0.3:
                taken.add(info.filename)
                archive.NameToInfo.pop(info.filename, None)  # without a warning of names that are there twice
                archive.writestr(info, contents, random.choice(methods))
    return buffer.getvalue()


ENTRY_FIELDS = {4: "H", 6: "H", 8: "H", 10: "H", 16: "I", 20: "I", 24: "I", 28: "H", 30: "H", 32: "H", 42: "I"}
"""Fields of an entry by offset: versions, flags (such as encryption), method, checksum, sizes, text lengths, offset."""

END_FIELDS = {4: "H", 8: "H", 10: "H", 12: "I", 16: "I", 20: "H"}
"""Fields of the end: numbers of disks and entries, size and offset of the directory, length of the comment."""


def _entries(data: bytearray) -> list[int]:
    return [offset for offset in range(len(data) - 46) if data[offset : offset + 4] == b"PK\1\2"]


def _put_number(data: bytearray, start: int, fields: Mapping[int, str], random: Random) -> None:
    """Overwrite one of the fields of a record."""
    offset, form = random.choice([*fields.items()])
    (before,) = struct.unpack_from(f"<{form}", data, start + offset)
    value = random.choice((*NUMBERS, before + 1, before - 1, before ^ 1)) % (1 << 8 * struct.calcsize(form))
    struct.pack_into(f"<{form}", data, start + offset, value)


# ------------------------------------------------------------------------------------------------ pickles

OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]

BOMBS = (
    b"\x80\x04]r\xff\xff\xff\x7f.",  # a memo of two billion places
    b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x80\x04]" + b"2\x86" * 200 + b"}h\0s.",
    b"(" * 300_000,
    b"\x80\x04K\1" + b"\x85" * 300_000 + b".",
    pickle.dumps(Attack(), 4),
    pickle.dumps(Attack(), 0),
    pickle.dumps({"ema": Attack(), "encoder": Attack()}),
)


def changed_pickle(data: bytes, random: Random) -> bytes:
    """Other bytes, other instructions, or something else altogether."""
    choice = random.random()
    if choice < 0.6:
        return mangled(data, random)
    if choice < 0.7:
        return random.choice(BOMBS)
    changed = bytearray(data)
    for _ in range(random.choice((1, 2, 5))):
        start = _offset(changed, random)
        piece = random.choice((random.choice(OPCODES), pickle.dumps(Attack(), 2)[2:-1], random.choice(OPCODES) * 50))
        changed[start : start + random.choice((0, 1))] = piece
    return bytes(changed)
