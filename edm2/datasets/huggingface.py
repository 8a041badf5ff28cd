"""Images of a Hugging Face dataset, as files to convert.

    convert(open_huggingface("cifar10", image_column="img"), "cifar10-32.zip", CenterCropDhariwal(32, 32))

Needs the package `datasets` (extra "datasets"). Images are taken as they are stored, and decoded as those in a folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edm2.post_hoc_ema.files import first_line
from edm2.training.data.archive.catalog import MAX_CLASSES, Catalog
from edm2.training.data.archive.files import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset

SAVED = ("state.json", "dataset_dict.json")
"""Files by which to know a folder that `save_to_disk` wrote."""


class HuggingFaceFiles:
    """Stored bytes of one column of images; names are row numbers."""

    def __init__(self, where: str, dataset: "Dataset", column: str) -> None:
        self.path = Path(where)
        self._fingerprint = dataset._fingerprint  # changes with the contents, and is the same in every process
        self._column = column
        self._rows: Any = dataset.select_columns([column]).with_format("arrow")

    def names(self) -> list[str]:
        return [f"{row:08}" for row in range(len(self._rows))]

    def stamps(self, names: Sequence[str]) -> list[tuple[str, int]]:
        """Fingerprint of the dataset with each row number: all change when any row does."""
        return [(self._fingerprint, int(name)) for name in names]

    def read(self, name: str) -> bytes:
        image = self._rows[int(name)].column(self._column)[0].as_py()
        if image is None:
            raise ValueError("no image in this row")
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def open_huggingface(
    name: str,
    config: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[HuggingFaceFiles, Catalog]:
    """Open the images of a dataset with their labels, for `convert`.

    Args:
        name: Name on the hub; or a local folder, written by `save_to_disk` or of files that `load_dataset` knows.
        config: Name of one of its variants.
        split: Name of one of its splits.
        image_column: Default: the only column of images.
        label_column: A column of class names, class numbers from 0 or texts; default: the only one of class names.
            "none": without labels.
    """
    where = f"hf:{name}"
    dataset = _load(where, name, config, split)
    images = _choose(where, dataset, "Image", image_column)
    if images is None or type(dataset.features[images]).__name__ != "Image":
        columns = ", ".join(dataset.column_names)
        raise DatasetError(f"{where}: no images in column {images or 'of any name'}; the columns are {columns}")
    files = HuggingFaceFiles(f"{where}/{split}", dataset, images)
    labels = None if label_column == "none" else _choose(where, dataset, "ClassLabel", label_column)
    return files, Catalog(files.names(), *_labels(where, dataset, labels))


def _load(where: str, name: str, config: str | None, split: str) -> "Dataset":
    try:
        import datasets
    except ImportError:
        raise DatasetError(f"{where}: the package is missing; pip install 'edm2[datasets]'") from None
    _silence(datasets)
    try:
        if not any((Path(name) / file).exists() for file in SAVED):
            return datasets.load_dataset(name, config, split=split)
        saved = datasets.load_from_disk(name)
        return saved if isinstance(saved, datasets.Dataset) else saved[split]
    except Exception as error:  # the hub has many ways to fail
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DatasetError(
            f"{where}: cannot be loaded ({reason}); check its name, --config and --split, "
            "or give a local copy while offline"
        ) from error


def _silence(datasets: Any) -> None:
    """Silence warnings of lost connections, which would bury the one-line error, and bars where no terminal is."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _choose(where: str, dataset: "Dataset", kind: str, wanted: str | None) -> str | None:
    """Return the wanted column, else the only one of its kind, or None."""
    if wanted is not None:
        if wanted not in dataset.column_names:
            raise DatasetError(f"{where}: there is no column {wanted}, only {', '.join(dataset.column_names)}")
        return wanted
    found = [column for column, feature in dataset.features.items() if type(feature).__name__ == kind]
    if len(found) > 1:
        option = {"Image": "--image-column", "ClassLabel": "--label-column"}[kind]
        raise DatasetError(f"{where}: there are columns {', '.join(found)}; choose one by {option}")
    return found[0] if found else None


def _labels(where: str, dataset: "Dataset", column: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int64 [N], -1 throughout if unlabelled; and the names of the classes."""
    if column is None:
        return np.full(len(dataset), -1, dtype=np.int64), ()
    values = dataset.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()
    if all(isinstance(value, str) for value in values):
        names = sorted(set(values))
        index = {name: index for index, name in enumerate(names)}
        return np.array([index[value] for value in values], dtype=np.int64), tuple(names)
    known: list[str] | None = getattr(dataset.features[column], "names", None)
    limit = len(known) if known else MAX_CLASSES
    for row, value in enumerate(values):
        if type(value) is not int or not 0 <= value < limit:
            raise DatasetError(
                f"{where}: the label of row {row} in column {column} is {value!r}; choose a --label-column of class "
                'numbers from 0 or of names, or "none"'
            )
    return np.array(values, dtype=np.int64), tuple(known or map(str, range(max(values) + 1)))
