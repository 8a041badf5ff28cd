"""Datasets written by tests: images and arrays in folders and ZIP files."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


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
