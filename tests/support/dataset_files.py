"""Datasets written by tests: images and arrays in folders and ZIP files."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def deep_png(levels: np.ndarray, *chunks: bytes) -> bytes:
    """PNG of 16 bits per channel of levels [H, W, C], which Pillow cannot write in color."""
    height, width, channels = levels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *chunks, pixels, png_chunk(b"IEND", b"")])


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def tiff(numbers: np.ndarray, order: str = "<", deflated: bool = False, white: int = 1) -> bytes:
    """TIFF of numbers [H, W, C] of any type in one strip, in either byte order; of gray, 0 is black or `white`."""
    height, width, channels = numbers.shape
    data = numbers.astype(numbers.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflated else data
    bits, sign = 8 * numbers.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[numbers.dtype.kind]
    color = {256: width, 257: height, 259: 8 if deflated else 1, 262: white if channels == 1 else 2,
             277: channels, 278: height, 279: len(data)}  # fmt: skip
    per_channel = {258: [bits] * channels, 339: [sign] * channels} | ({338: [2]} if channels == 4 else {})
    end = 10 + 12 * (len(color) + len(per_channel) + 1) + 4
    extra, entries = b"", {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in color.items()}
    for tag, values in per_channel.items():
        packed = struct.pack(f"{order}{len(values)}H", *values)
        where = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", end + len(extra))
        extra += packed if len(packed) > 4 else b""
        entries[tag] = struct.pack(f"{order}HHI", tag, 3, len(values)) + where
    entries[273] = struct.pack(f"{order}HHII", 273, 4, 1, end + len(extra))
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    return start + directory + bytes(4) + extra + data


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(exist_ok=True)
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


class Stopped(BaseException):
    """Not an Exception: nobody may catch it and go on."""


def stop_at_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Stop where a file is about to get its name, the `number`-th time and all later times."""
    replace, count = Path.replace, iter(range(number, -100, -1))

    def stopping(self: Path, target: Path) -> Path:
        if next(count) <= 0:
            raise Stopped
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stopping)
