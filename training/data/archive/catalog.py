"""The images of a dataset in a folder or a ZIP, and their labels, without opening an image.

Format of the paper's tools (arXiv 2312.02696v2): PNG or NPY files in any sub-folders, and at the root `dataset.json`:

    {"labels": [["00000/img00000000.png", 3], ...] or null, "class_names": ["cat", ...]}      (class_names is optional)

Without `dataset.json`, or where it has no entry "labels", the top-level sub-folders are the classes. Nothing is ever
written or extracted.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edm2.post_hoc_ema.files import first_line, parse_json
from edm2.training.data.archive.files import (
    CONDITIONS,
    CONVERTIBLE,
    DESCRIPTION,
    HEIF_SUFFIXES,
    IMAGE_LIKE,
    SUFFIXES,
    DatasetError,
    Files,
    FolderFiles,
    condition_of,
    folder_root,
    normalized,
    suffix_of,
    unreadable,
)
from edm2.training.data.archive.zip_files import ZipFiles

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
"""Names of folders that are parts of a dataset, not classes."""

SHOWN = 8
"""Names that a line lists at most."""

MADE_BY_STATS = f"or remove {DESCRIPTION} if edm2 dataset stats wrote it"
"""Remedy for the labels that earlier versions stored beside statistics, where folders are the classes."""

MAX_CLASSES = 1_000_000
"""Number of classes at most: labels are class indices, and a larger one is an identifier of another kind."""


def open_files(path: Path) -> Files:
    """Files at `path`, a folder or a ZIP. Raises DatasetError if it does not exist."""
    if path.is_dir():
        return FolderFiles(folder_root(path))
    if path.is_file() and suffix_of(path.name) in IMAGE_LIKE:
        raise DatasetError(f"{path}: a single image; give the folder of it, or a ZIP file of images")
    if path.is_file():
        return ZipFiles(path)
    if path.exists():  # a FIFO would never answer
        raise DatasetError(f"{path}: neither a file nor a folder; give a folder or a ZIP file of images")
    raise DatasetError(f"{path}: no such file or folder; give a folder or a ZIP file of images")


@dataclass(frozen=True)
class Catalog:
    """List of the N images of a dataset in their order, and all that is known of them without opening one."""

    names: Sequence[str]

    labels: np.ndarray
    """int64 [N] class indices, -1 throughout if unlabelled."""

    class_names: tuple[str, ...]
    """Empty if unlabelled."""

    latents: Any = None
    """Entry of dataset.json, unchecked: VAE and statistics of the latents whose moments are stored."""

    pixels: Any = None
    """Entry of dataset.json, unchecked: statistics of the pixels."""

    conditions: Any = None
    """Entry of dataset.json, unchecked: kinds and statistics of the images' conditions."""

    condition_names: tuple[str, ...] = ()
    """Names of the conditions that are stored beside the images."""

    notes: tuple[str, ...] = ()
    """Lines about what its owner may not expect: files that are left out, classes without images."""

    others: Mapping[str, int] = field(default_factory=dict)
    """Number of files of each suffix that are not among the images."""

    litter: Mapping[str, int] = field(default_factory=dict)
    """Number of files and folders of other programs, by kind (`Files.litter`)."""


def read_catalog(files: Files, suffixes: Sequence[str] = SUFFIXES, labelled: bool = True) -> Catalog:
    """List the images among `files`, with their labels.

    Args:
        labelled: False to look neither for labels nor for classes.
    """
    all_names = files.names()
    of_conditions = [found[0] for name in all_names if (found := condition_of(name)) is not None]
    present = [name for name in all_names if condition_of(name) is None] if of_conditions else all_names
    described = DESCRIPTION in present and labelled
    content = read_description(files) if described else {}
    where = f"{files.path}/{DESCRIPTION}"
    table = None if content.get("labels") is None else _label_table(content["labels"], where)
    names, notes, others = _choose_images(present, suffixes, table or {})
    if not names:
        raise DatasetError(
            f"{files.path}: no images in it; " + ("; ".join(notes) or f"expected files named *{', *'.join(suffixes)}")
        )
    if table is not None:
        labels, class_names = _labels_from_table(table, names, present, content.get("class_names"), where)
    elif labelled and "labels" not in content:
        labels, class_names = labels_from_folders(files, names)
        notes += _split_folders(files.path, class_names)
    else:
        labels, class_names = np.full(len(names), -1, dtype=np.int64), ()
    notes += _empty_classes(labels, class_names)
    entries: dict[str, Any] = {key: content.get(key) for key in ("latents", "pixels", "conditions")}
    entries |= {"condition_names": tuple(sorted(set(of_conditions))), "notes": tuple(notes)}
    return Catalog(names, labels, class_names, others=others, litter=files.litter, **entries)


def _choose_images(
    present: Sequence[str], suffixes: Sequence[str], listed: Iterable[str]
) -> tuple[list[str], list[str], Counter[str]]:
    """Choose images and arrays among the files; arrays of another program are left out, unless dataset.json lists them.

    Returns:
        Names in plain sort order; notes of what looks like images and is left out; number of other files by suffix.
    """
    images = [name for name in present if name.lower().endswith(tuple(suffixes))]
    arrays = {name for name in images if suffix_of(name) == ".npy"}
    stray = arrays.difference(listed) if 2 * len(arrays) < len(images) else set()
    names = sorted((name for name in images if name not in stray), key=normalized)
    counts = Counter(map(suffix_of, present))
    alike = [suffix for suffix in sorted(counts) if suffix in IMAGE_LIKE and suffix not in suffixes]
    notes = [f"{len(stray):,} .npy among images left out, such as {min(stray)}"] if stray else []
    for remedy in dict.fromkeys(map(_remedy_for, alike)):
        found = [f"{counts[suffix]:,} {suffix}" for suffix in alike if _remedy_for(suffix) == remedy]
        notes.append(f"{', '.join(found)} left out: {remedy}")
    counts[suffix_of(DESCRIPTION)] -= DESCRIPTION in present
    return names, notes, counts - Counter(map(suffix_of, names))


def _remedy_for(suffix: str) -> str:
    """Remedy for files of a suffix that is not read."""
    if suffix in HEIF_SUFFIXES:
        return "edm2 dataset convert reads them after pip install 'edm2[heic]'"
    return "edm2 dataset convert reads them" if suffix in CONVERTIBLE else "save them as PNG to use them"


def _split_folders(path: Path, class_names: Sequence[str]) -> list[str]:
    splits = [name for name in class_names if name.lower() in SPLITS]
    if not splits:
        return []
    classes, folders = listed(class_names), " or ".join(f"{path}/{name}" for name in splits)
    return [f"the classes are called {classes}, which are parts of a dataset: give {folders} for the classes in one"]


def _empty_classes(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    empty = [class_names[index] for index in empty_classes(labels, len(class_names))]
    if not empty:
        return []
    count = "1 class has no image" if len(empty) == 1 else f"{len(empty):,} classes have no image"
    return [f"{count}, and will not be drawn unless asked for: {listed(empty)}"]


def empty_classes(labels: np.ndarray, num_classes: int) -> tuple[int, ...]:
    """Classes below `num_classes` without an image, of labels int64 [N] (-1: none)."""
    return tuple(np.flatnonzero(np.bincount(labels[labels >= 0], minlength=num_classes) == 0).tolist())


def listed(names: Sequence[str]) -> str:
    """The first few of some names, as text."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def read_description(files: Files) -> dict[str, Any]:
    """Read `dataset.json`: an object whose entry "labels" is a list or None, and whose other entries are unchecked.

    Where only statistics were stored, there is no entry "labels".
    """
    where = f"{files.path}/{DESCRIPTION}"
    try:
        content = parse_json(files.read(DESCRIPTION))
    except ValueError as error:
        raise DatasetError(f"{where}: not JSON: {first_line(error)}") from error
    except Exception as error:
        raise unreadable(where, error) from error
    is_object = isinstance(content, dict)
    measured = is_object and bool({"pixels", "latents", "conditions"} & content.keys())
    if not is_object or not isinstance(content.get("labels", None if measured else 0), list | None):
        raise DatasetError(f'{where}: must be of the form {{"labels": [[file name, class index], ...] or null}}')
    return content


def _labels_from_table(
    table: dict[str, int], images: Sequence[str], present: Sequence[str], class_names: Any, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of `images` in the order of these, and the names of the classes."""
    _check_same_names(table, images, present, where)
    values = np.array([table[normalized(name)] for name in images], dtype=np.int64)
    return values, _class_names(class_names, int(values.max()) + 1, where)


def labels_from_folders(files: Files, images: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of `images` by top-level sub-folder: its index in plain sort order of the (composed) names.

    Returns:
        int64 [N] class indices, -1 throughout without sub-folders; and the names of the classes.
    """
    folders = [normalized(name).split("/")[0] if "/" in name else None for name in images]
    class_names = sorted({folder for folder in folders if folder is not None})
    if not class_names:
        return np.full(len(images), -1, dtype=np.int64), ()
    if None in folders:
        raise DatasetError(
            f"{files.path}: {images[folders.index(None)]} lies beside class folders such as {class_names[0]}; "
            'move it into one, or add a dataset.json with {"labels": null} to train without classes '
            "(edm2 dataset convert --unlabelled writes one)"
        )
    number = {folder: index for index, folder in enumerate(class_names)}
    return np.array([number[folder] for folder in folders if folder is not None], dtype=np.int64), tuple(class_names)


def check_latents(path: Path, description: Any) -> None:
    """Raises DatasetError unless the entry "latents" of `dataset.json` is None or an object."""
    if not isinstance(description, dict | None):
        raise DatasetError(
            f'{path}/{DESCRIPTION}: "latents" must be an object with vae, mean, std, pixel_range; '
            "remove it, or measure anew with edm2 dataset stats"
        )


def check_pixel_statistics(path: Path, statistics: Any, channels: int) -> None:
    """Raises DatasetError unless the entry "pixels" of `dataset.json` is None or fits images of `channels` channels."""
    if statistics is not None and not _are_statistics(statistics, channels):
        raise DatasetError(
            f'{path}/{DESCRIPTION}: "pixels" must be an object with mean, std (one number for each of the {channels} '
            "channels, std positive) and sigma_data; remove it, or measure anew with edm2 dataset stats"
        )


def _are_statistics(value: Any, channels: int) -> bool:
    if not isinstance(value, dict):
        return False
    mean: Any = value.get("mean")
    std: Any = value.get("std")
    sigma_data: Any = value.get("sigma_data")
    if not all(isinstance(numbers, list) and len(numbers) == channels for numbers in (mean, std)):
        return False
    return all(map(_is_finite, (*mean, *std, sigma_data))) and min(*std, sigma_data) > 0


def _is_finite(value: Any) -> bool:
    # bool is an int for isinstance; JSON knows NaN, and whole numbers beyond the range of floats
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


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
        known = table.setdefault(normalized(name), label)
        if known != label:
            raise DatasetError(f"{where}: {name} has two labels, {known} and {label}; keep one")
    return table


def _check_same_names(labels: dict[str, int], images: Sequence[str], present: Sequence[str], where: str) -> None:
    files = set(map(normalized, present))
    absent = [name for name in labels if name not in files]
    if absent:
        raise DatasetError(
            f"{where}: names {len(absent)} files that do not exist, the first is {absent[0]}; restore or unlist them, "
            f"{MADE_BY_STATS}"
        )
    unlisted = [name for name in images if normalized(name) not in labels]
    if unlisted:
        raise DatasetError(
            f"{where}: has no label for {len(unlisted)} files, the first is {unlisted[0]}; list or remove them, "
            f"{MADE_BY_STATS}"
        )


def _class_names(names: Any, count: int, where: str) -> tuple[str, ...]:
    """Names given in `dataset.json`, or the numbers from 0 to `count - 1`."""
    if names is None:
        return tuple(map(str, range(count)))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(f'{where}: "class_names" must be a list of strings, not {_short(names)}')
    if len(names) < count:
        raise DatasetError(f'{where}: the labels go up to {count - 1}, but "class_names" has only {len(names)} names')
    return tuple(names)


def condition_files(files: Files, name: str, images: Sequence[str]) -> list[str | None]:
    """Files of the condition `name` for each of `images`, whatever the suffixes; None where one is missing."""
    found = {}
    for stored in files.names():
        if (of := condition_of(stored)) is not None and of[0] == name and suffix_of(stored) in SUFFIXES:
            found[normalized(os.path.splitext(of[1])[0])] = stored
    return [found.get(normalized(os.path.splitext(image)[0])) for image in images]


def missing_condition(files: Files, name: str, images: Sequence[str], found: Sequence[str | None]) -> str | None:
    """Line that says for which of `images` a condition has no file; None if it has all."""
    missing = [image for image, file in zip(images, found, strict=True) if file is None]
    if not missing:
        return None
    return (
        f"{files.path}/{CONDITIONS}/{name}: has no file for {len(missing):,} of {len(images):,} images, the first is "
        f"{missing[0]}; add them, or leave the condition out"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
