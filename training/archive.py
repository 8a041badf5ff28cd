"""The files of a dataset: images and NPY arrays in a folder or a ZIP, and the labels that belong to them.

Format of the paper's tools (arXiv 2312.02696v2): PNG or NPY files in any sub-folders, and at the root `dataset.json`:

    {"labels": [["00000/img00000000.png", 3], ...] or null, "class_names": ["cat", ...]}      (class_names is optional)

Without `dataset.json` the top-level sub-folders are the classes. Nothing is ever written or extracted.
"""

import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SUFFIXES = (*IMAGE_SUFFIXES, ".npy")

MAX_CLASSES = 1_000_000
"""Labels are class indices; a larger one is an identifier of some other kind, and a network that large a mistake."""


class DatasetError(ValueError):
    """The data cannot be used as they are. The message is one line: the file, what is wrong with it, the remedy."""

    def __init__(self, message: str) -> None:
        # A file name may hold line breaks, escape sequences of a terminal, or bytes that are no text.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class Files(Protocol):
    """Named byte strings, read one at a time; may be used after a fork, in threads, and pickled."""

    path: Path

    def names(self) -> list[str]:
        """Names of all files, relative to the root, with forward slashes."""

    def read(self, name: str) -> bytes: ...


class FolderFiles:
    """The files in a folder and its sub-folders; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        walk = os.walk(self.path, followlinks=True, onerror=self._refuse)
        return [(Path(folder) / file).relative_to(self.path).as_posix() for folder, _, files in walk for file in files]

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def _refuse(self, error: OSError) -> None:
        # os.walk would silently leave out what it cannot list.
        raise DatasetError(f"{error.filename}: cannot be listed: {error.strerror}") from error


class ZipFiles:
    """The members of a ZIP file.

    Every process opens the file for itself: after a fork, parent and child would otherwise share one file position.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def names(self) -> list[str]:
        names = self._zip().namelist()
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise DatasetError(
                f"{self.path}: holds {len(repeated)} names more than once, the first is {repeated[0]}; write it anew"
            )
        return names

    def read(self, name: str) -> bytes:
        return self._zip().read(name)

    def _zip(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._open())
        return self._opened[1]

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except OSError as error:
            raise DatasetError(f"{self.path}: cannot be opened: {error.strerror or error}") from error
        except Exception as error:  # mostly BadZipFile, but a damaged directory can raise almost anything
            raise DatasetError(
                f"{self.path}: not a ZIP file, or cut short ({_one_line(error)}); copy or write it anew"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def open_files(path: Path) -> Files:
    """The files at `path`, a folder or a ZIP file.

    Raises:
        DatasetError: Nothing is there.
    """
    if path.is_dir():
        return FolderFiles(path)
    if path.exists():
        return ZipFiles(path)
    raise DatasetError(f'{path}: no such file or folder; give a folder of images, a ZIP file, or the word "digits"')


def image_names(names: Sequence[str]) -> list[str]:
    """The images and arrays among `names`, in plain sort order; hidden files and what macOS adds to a ZIP left out."""
    return sorted(name for name in names if name.lower().endswith(SUFFIXES) and not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    path = f"/{name}"
    return "/." in path or "/__MACOSX/" in path


# ----------------------------------------------------------------------------------------------------------------------
# Labels


def labels_from_json(files: Files, images: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of `images` according to `dataset.json`.

    Returns:
        int64 [N] class indices, -1 throughout if unlabelled; and the names of the classes, empty if unlabelled.

    Raises:
        DatasetError: Not JSON, of another shape, or the list and the files do not match.
    """
    where = f"{files.path}/dataset.json"
    content = _parse_json(files, where)
    if content["labels"] is None:
        return np.full(len(images), -1, dtype=np.int64), ()
    labels = _label_table(content["labels"], where)
    _check_same_names(labels, images, where)
    values = np.array([labels[name] for name in images], dtype=np.int64)
    return values, _class_names(content.get("class_names"), int(values.max()) + 1, where)


def labels_from_folders(files: Files, images: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of `images` by top-level sub-folder: its rank in plain sort order. Returned as by `labels_from_json`.

    Raises:
        DatasetError: Some images lie in sub-folders and others directly in the root.
    """
    folders = [name.split("/")[0] if "/" in name else None for name in images]
    class_names = sorted({folder for folder in folders if folder is not None})
    if not class_names:
        return np.full(len(images), -1, dtype=np.int64), ()
    if None in folders:
        raise DatasetError(
            f"{files.path}: {images[folders.index(None)]} lies beside class folders such as {class_names[0]}; "
            'move it into one, or add a dataset.json with {"labels": null} to train without classes'
        )
    rank = {folder: index for index, folder in enumerate(class_names)}
    return np.array([rank[folder] for folder in folders], dtype=np.int64), tuple(class_names)


def latents_from_json(files: Files) -> dict[str, Any] | None:
    """What `dataset.json` says of the VAE that the moments come from: its entry "latents", or None.

    Raises:
        DatasetError: The entry is no object.
    """
    where = f"{files.path}/dataset.json"
    description = _parse_json(files, where).get("latents")
    if not isinstance(description, dict | None):
        raise DatasetError(f'{where}: "latents" must be an object with vae, mean, std, pixel_range')
    return description


def _parse_json(files: Files, where: str) -> dict[str, Any]:
    try:
        content = json.loads(files.read("dataset.json"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON: {_one_line(error)}") from error
    except Exception as error:
        raise DatasetError(f"{where}: cannot be read: {_one_line(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("labels", 0), list | None):
        raise DatasetError(f'{where}: must be of the form {{"labels": [[file name, class index], ...] or null}}')
    return content


def _label_table(pairs: list[Any], where: str) -> dict[str, int]:
    table: dict[str, int] = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise DatasetError(f'{where}: "labels" must hold pairs [file name, class index], not {_short(pair)}')
        name, label = pair
        if type(label) is not int or not 0 <= label < MAX_CLASSES:  # bool is an int for isinstance
            raise DatasetError(
                f"{where}: the label of {name} is {_short(label)}; labels are class indices, whole numbers from 0"
            )
        if table.setdefault(name, label) != label:
            raise DatasetError(f"{where}: {name} has two labels, {table[name]} and {label}; keep one")
    return table


def _check_same_names(labels: dict[str, int], images: Sequence[str], where: str) -> None:
    present = set(images)
    absent = [name for name in labels if name not in present]
    if absent:
        raise DatasetError(
            f"{where}: names {len(absent)} files that do not exist, the first is {absent[0]}; restore or unlist them"
        )
    unlisted = [name for name in images if name not in labels]
    if unlisted:
        raise DatasetError(
            f"{where}: has no label for {len(unlisted)} files, the first is {unlisted[0]}; list or remove them"
        )


def _class_names(names: Any, count: int, where: str) -> tuple[str, ...]:
    """The given names, or the numbers from 0 to the largest label."""
    if names is None:
        return tuple(map(str, range(count)))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(f'{where}: "class_names" must be a list of strings, not {_short(names)}')
    if len(names) < count:
        raise DatasetError(f'{where}: the labels go up to {count - 1}, but "class_names" has only {len(names)} names')
    return tuple(names)


# ----------------------------------------------------------------------------------------------------------------------
# Images and arrays


def read_array(files: Files, name: str) -> np.ndarray:
    """One datum [C, H, W]: uint8 pixels with 1 to 4 channels, or float32 moments (means, then standard deviations).

    Raises:
        DatasetError: Missing, damaged, or neither of the two.
    """
    try:
        decode = _decode_npy if name.lower().endswith(".npy") else _decode_image
        return decode(files.read(name))
    except Exception as error:  # damaged or hostile bytes make ZIP, image and NPY readers raise almost anything
        raise DatasetError(f"{files.path}/{name}: cannot be read: {_one_line(error)}") from error


def _decode_image(data: bytes) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError("not an image, or damaged") from None  # Pillow's own text shows the address of a buffer
    if _bits_per_channel(data, image.mode) > 8:
        raise ValueError("more than 8 bits per channel are not supported; convert it to 8 bits")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return np.atleast_3d(pixels).transpose(2, 0, 1)


def _bits_per_channel(data: bytes, mode: str) -> int:
    if data.startswith(b"\x89PNG"):
        return data[24]  # in the header chunk; Pillow silently drops the lower half of 16-bit colours
    return 32 if mode[0] in "IF" else 8


def _decode_npy(data: bytes) -> np.ndarray:
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if array.dtype not in (np.uint8, np.float32) or array.ndim != 3 or 0 in array.shape:
        raise ValueError(
            f"{array.dtype} array of shape {list(array.shape)}; expected uint8 pixels or float32 moments [C, H, W]"
        )
    if array.dtype == np.uint8:
        _check_pixels(array)
    else:
        _check_moments(array)
    return array


def _check_pixels(array: np.ndarray) -> None:
    if array.shape[0] > 4:
        raise ValueError(f"pixels of shape {list(array.shape)}; expected [C, H, W] with 1 to 4 channels")


def _check_moments(array: np.ndarray) -> None:
    if array.shape[0] % 2:
        raise ValueError(f"moments of shape {list(array.shape)}; expected as many means as standard deviations")
    if not np.isfinite(array).all():
        raise ValueError("moments hold NaN or infinity; encode the image again")
    if (array[array.shape[0] // 2 :] < 0).any():
        raise ValueError("negative standard deviations in the second half of the channels; store mean, then std")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
