"""Datasets: images by index, in memory or in files.

A dataset returns data as stored (uint8 pixels, or the float moments of latents); a codec turns them into what the
network sees. Dimensions: N images, C channels, H rows, W columns.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from edm2.training.data.archive.catalog import (
    Catalog,
    check_latents,
    check_pixel_statistics,
    condition_files,
    empty_classes,
    missing_condition,
    read_catalog,
)
from edm2.training.data.archive.decoding import read_array, read_condition, read_format
from edm2.training.data.archive.files import READERS, DatasetError, Files, StorageError, normalized
from edm2.training.data.archive.index import open_archive
from edm2.training.data.order import permutation
from edm2.training.imports import is_target

Indices: TypeAlias = Sequence[int] | np.ndarray | Tensor

CONTENTS = "contents"
"""Entry beside stored statistics: fingerprint of the images that they were measured on."""

TOKEN_BYTES = 1 << 10
"""Bytes at the beginning of an array that hold its header."""

Loaded: TypeAlias = tuple[Tensor, Tensor, Mapping[str, Tensor] | None]
"""Images, labels and conditions, as a dataset has them."""


class Dataset(ABC):
    """Images of one size, with class labels if there are any."""

    def __init__(
        self, name: str, shape: Sequence[int], kind: str, levels: int, class_names: Sequence[str] = ()
    ) -> None:
        self.name = name
        """Name to show to people."""

        self.shape = tuple(shape)
        """(C, H, W) of an image as stored."""

        self.kind = kind
        """"pixels" (uint8), "values" (float32 of any range), or "moments" (float32 or float16: the means of all
        channels, then standard deviations)."""

        self.levels = levels
        """Number of values that a pixel can take, from 0; 0 for moments."""

        self.class_names = tuple(class_names)
        """Names of the classes in order; empty if the images have no labels."""

        self.latents: Mapping[str, Any] | None = None
        """VAE and statistics of the latents, if given: vae, mean, std, pixel_range (see `LatentCodec`)."""

        self.pixel_stats: Mapping[str, Any] | None = None
        """Statistics of the pixels, if measured: mean and std in levels (lists, one number per channel), sigma_data."""

        self.notes: tuple[str, ...] = ()
        """Lines about what the owner of the images may not expect, such as files that are left out."""

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 if the images have no labels."""
        return len(self.class_names)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def images(self, indices: Indices) -> Tensor:
        """Images [N, C, H, W]: uint8 pixels or moments. Raises DatasetError where a file is unusable."""

    @abstractmethod
    def labels(self, indices: Indices) -> Tensor:
        """Class indices int64 [N], -1 where unlabelled."""

    def empty_classes(self) -> tuple[int, ...]:
        """Classes without a single image, which are not drawn at random."""
        return empty_classes(self.labels(range(len(self))).numpy(), self.num_classes)

    def conditions(self, indices: Indices) -> Mapping[str, Tensor] | None:
        """Conditions of images besides their labels, by name, each [N, ...]; None for a dataset without."""
        return None

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Names of all conditions that `read_condition` knows."""
        return tuple(self.conditions([0]) or ())

    def read_condition(self, name: str, indices: Indices) -> Tensor:
        """Read one condition of images, [N, ...]; sequences of different length are padded by NaN.

        Raises:
            DatasetError: it is missing for an image, or unusable.
        """
        return (self.conditions(indices) or {})[name]

    def known_condition(self, name: str) -> Mapping[str, Any]:
        """Stored facts about a condition, as `Condition.to_json` has it; only its encoder, or nothing, else."""
        return {}

    def condition_contents(self, name: str) -> str | None:
        """Digest of the stored values of a condition; None where they are not stored."""
        return None

    def most_tokens(self, name: str) -> int:
        """Largest number of tokens of any image; 0 where only reading them would tell."""
        return 0

    def item_name(self, index: int) -> str:
        """Name of an image to show to people: that of its file, or its number."""
        return str(index)

    def read(self, indices: Indices) -> Loaded:
        """Images, labels and conditions of some indices."""
        return self.images(indices), self.labels(indices), self.conditions(indices)

    def fingerprint(self) -> str | None:
        """Text that tells these images from others, and is the same for a copy of them; None if unknown."""
        return None


class ArrayDataset(Dataset):
    """Images in memory.

    Args:
        images: uint8 pixels or moments [N, C, H, W].
        labels: int64 [N], or None.
        class_names: One per class; default: the numbers up to the largest label.
        levels: Number of values that a pixel can take.
        conditions: Conditions of the images by name, each [N, ...].
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        levels: int = 256,
        name: str = "array",
        conditions: Mapping[str, Tensor] | None = None,
    ) -> None:
        if class_names is None:
            class_names = [] if labels is None else [str(k) for k in range(int(labels.max()) + 1)]
        kind, levels = ("pixels", levels) if images.dtype == torch.uint8 else ("moments", 0)
        super().__init__(name, images.shape[1:], kind, levels, class_names)
        self._images = images
        self._labels = torch.full([len(images)], -1) if labels is None else labels
        self._conditions = conditions

    def __len__(self) -> int:
        return len(self._images)

    def images(self, indices: Indices) -> Tensor:
        return self._images.index_select(0, torch.as_tensor(indices, dtype=torch.int64))

    def labels(self, indices: Indices) -> Tensor:
        return self._labels.index_select(0, torch.as_tensor(indices, dtype=torch.int64))

    def conditions(self, indices: Indices) -> Mapping[str, Tensor] | None:
        if self._conditions is None:
            return None
        indices = torch.as_tensor(indices, dtype=torch.int64)
        return {name: values.index_select(0, indices) for name, values in self._conditions.items()}

    def fingerprint(self) -> str:
        return _digest(self._images.contiguous().view(torch.uint8).numpy())


@dataclass(frozen=True)
class ImageFormat:
    """Size and type of an image, which all images of a dataset have in common."""

    shape: tuple[int, ...]
    """C, H, W."""
    dtype: np.dtype

    @classmethod
    def of(cls, array: np.ndarray) -> "ImageFormat":
        """Format of an image [C, H, W]."""
        return cls(array.shape, array.dtype)

    def __str__(self) -> str:
        channels, height, width = self.shape
        unit = "pixels" if self.dtype == np.uint8 else f"{self.dtype} moments"
        return f"{height}x{width} {unit} with {channels} channel{'s' if channels > 1 else ''}"

    def difference(self, first: "ImageFormat", first_name: str) -> str:
        """Phrase that says how an image of this format differs from the first one."""
        return f"{self}, but the first image {first_name} has {first}; edm2 dataset convert makes all alike"


class ArchiveDataset(Dataset):
    """Images in a folder or ZIP. A broken one is noticed when it is read."""

    def __init__(self, files: Files, catalog: Catalog | None = None) -> None:
        catalog = catalog or read_catalog(files)
        self._files = files
        self._names = catalog.names
        self._labels = torch.from_numpy(catalog.labels)
        self._fingerprint: str | None = None  # until it is asked for
        self._format: ImageFormat | None = None  # until the first image is read
        self._format = ImageFormat.of(self._read(0))
        shape = self._format.shape
        kind, levels = ("pixels", 256) if self._format.dtype == np.uint8 else ("moments", 0)
        super().__init__(files.path.stem, shape, kind, levels, catalog.class_names)
        self.notes = catalog.notes
        self._condition_names = catalog.condition_names
        self._condition_files: dict[str, list[Any]] = {}  # when they are asked for
        self._condition_stats = catalog.conditions
        if kind == "moments":
            check_latents(files.path, catalog.latents)
            if not self._measured_here(catalog.latents):
                self.notes += (f"stored statistics are of other latents: edm2 dataset stats {files.path}",)
            self.latents = _without_contents(catalog.latents)
            return
        check_pixel_statistics(files.path, catalog.pixels, shape[0])
        if self._measured_here(catalog.pixels):
            self.pixel_stats = _without_contents(catalog.pixels)
        else:
            self.notes += (f"stored statistics are of other images and not used: edm2 dataset stats {files.path}",)
        if shape[0] in (2, 4):
            self.notes += (
                f"channel {shape[0]} is transparency (alpha), which a network learns like a colour: "
                "edm2 dataset convert composites it on a background",
            )

    def __len__(self) -> int:
        return len(self._names)

    def images(self, indices: Indices) -> Tensor:
        assert self._format is not None  # since the first image was read
        batch = np.empty((len(indices), *self.shape), dtype=self._format.dtype)
        for row, index in enumerate(indices):
            batch[row] = self._read(int(index))
        return torch.from_numpy(batch)

    def labels(self, indices: Indices) -> Tensor:
        return self._labels.index_select(0, torch.as_tensor(indices, dtype=torch.int64))

    def item_name(self, index: int) -> str:
        return self._names[index]

    @property
    def condition_names(self) -> tuple[str, ...]:
        return self._condition_names

    def read_condition(self, name: str, indices: Indices) -> Tensor:
        return stack_padded([self._read_condition(name, int(index)) for index in indices], f"{self.name}/{name}")

    def condition_files(self, name: str) -> list[str]:
        """File of a condition for each image. Raises DatasetError if one is missing."""
        if name not in self._condition_files:
            found = condition_files(self._files, name, self._names)
            if line := missing_condition(self._files, name, self._names, found):
                raise DatasetError(line)
            self._condition_files[name] = found
        return self._condition_files[name]

    def known_condition(self, name: str) -> Mapping[str, Any]:
        entry = self._condition_stats.get(name) if isinstance(self._condition_stats, dict) else None
        if not isinstance(entry, dict):
            return {}
        if entry.get(CONTENTS) == self.condition_contents(name):
            return {key: value for key, value in entry.items() if key != CONTENTS}
        return {"encoder": entry.get("encoder")}  # the rest was measured on other files

    def condition_contents(self, name: str) -> str:
        """Digest of sizes and checksums of a condition's files (in a folder, of first and last 64 KiB)."""
        return hashlib.sha256(repr(self._files.contents(self.condition_files(name))).encode()).hexdigest()

    def most_tokens(self, name: str) -> int:
        with ThreadPoolExecutor(READERS) as pool:
            headers = pool.map(lambda file: read_format(self._files, file, TOKEN_BYTES), self.condition_files(name))
            return max(shape[0] for shape, _ in headers)

    def fingerprint(self) -> str:
        """Digest of the names, sizes and checksums of the files (in a folder, of each one's first and last 64 KiB)."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            names = map(normalized, self._names)
            for facts in zip(names, self._files.contents(self._names), strict=True):
                digest.update(repr(facts).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _read_condition(self, name: str, index: int) -> Tensor:
        return torch.from_numpy(read_condition(self._files, self.condition_files(name)[index]))

    def _measured_here(self, statistics: Mapping[str, Any] | None) -> bool:
        """True unless statistics say that they are of other images."""
        measured = (statistics or {}).get(CONTENTS)
        return measured is None or measured == self.fingerprint()

    def _read(self, index: int) -> np.ndarray:
        """Image of the common format."""
        path, name = self._files.path, self._names[index]
        try:
            array = read_array(self._files, name)
        except StorageError as error:
            raise StorageError(f"{error} (index {index})") from error
        except DatasetError as error:
            raise DatasetError(f"{error} (index {index}); {_advice(path)}") from error
        found = ImageFormat.of(array)
        if self._format is not None and found != self._format:
            difference = found.difference(self._format, self._names[0])
            raise DatasetError(f"{path}/{name}: {difference} (index {index}); {_advice(path)}")
        return array


def stack_padded(values: Sequence[Tensor], where: str) -> Tensor:
    """Stack values of one shape, and sequences [L, size] of any length padded by NaN to the longest."""
    if values[0].ndim == 2 and len({len(tokens) for tokens in values}) > 1:
        longest = max(map(len, values))
        values = [pad(tokens, (0, 0, 0, longest - len(tokens)), value=torch.nan) for tokens in values]
    for value in values:
        if value.shape != values[0].shape:
            raise DatasetError(
                f"{where}: is {list(value.shape)} for one image and {list(values[0].shape)} for another; make all alike"
            )
    return torch.stack(list(values))


def _without_contents(statistics: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return statistics and {name: value for name, value in statistics.items() if name != CONTENTS}


def _advice(path: Path) -> str:
    return f"edm2 dataset check {path} finds all such files"


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.data).hexdigest()


class Subset(Dataset):
    """Images of a dataset at some of its indices."""

    def __init__(self, dataset: Dataset, indices: Indices) -> None:
        super().__init__(dataset.name, dataset.shape, dataset.kind, dataset.levels, dataset.class_names)
        self.latents = dataset.latents
        self.pixel_stats = dataset.pixel_stats
        self.notes = dataset.notes
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def images(self, indices: Indices) -> Tensor:
        return self.dataset.images(self.indices[np.asarray(indices, dtype=np.int64)])

    def labels(self, indices: Indices) -> Tensor:
        return self.dataset.labels(self.indices[np.asarray(indices, dtype=np.int64)])

    def conditions(self, indices: Indices) -> Mapping[str, Tensor] | None:
        return self.dataset.conditions(self.indices[np.asarray(indices, dtype=np.int64)])

    @property
    def condition_names(self) -> tuple[str, ...]:
        return self.dataset.condition_names

    def read_condition(self, name: str, indices: Indices) -> Tensor:
        return self.dataset.read_condition(name, self.indices[np.asarray(indices, dtype=np.int64)])

    def known_condition(self, name: str) -> Mapping[str, Any]:
        return self.dataset.known_condition(name)

    def condition_contents(self, name: str) -> str | None:
        return self.dataset.condition_contents(name)

    def most_tokens(self, name: str) -> int:
        return self.dataset.most_tokens(name)

    def item_name(self, index: int) -> str:
        return self.dataset.item_name(int(self.indices[index]))

    def read(self, indices: Indices) -> Loaded:
        return self.dataset.read(self.indices[np.asarray(indices, dtype=np.int64)])

    def fingerprint(self) -> str | None:
        whole = self.dataset.fingerprint()
        return None if whole is None else f"{whole} {_digest(self.indices)}"


def open_dataset(source: str | Path) -> Dataset:
    """Open a dataset by name or path.

    Args:
        source: "digits", the handwritten digits that come with scikit-learn; or a ZIP file or folder, either with a
            `dataset.json` (`edm2.training.data.archive.catalog`) or just images, whose top-level sub-folders are the
            classes; or `module:callable`, which makes a dataset of PyTorch (`TorchDataset`).

    Raises:
        DatasetError: The path does not exist, or holds no usable dataset.
    """
    if is_target(str(source)):
        from edm2.training.data.torch_dataset import imported_dataset  # here: it imports this module

        return imported_dataset(str(source))
    return _digits() if source == "digits" else ArchiveDataset(*open_archive(Path(source)))


def _digits() -> Dataset:
    """1,797 images [1, 8, 8] in 17 levels of gray (0 to 16), ten classes."""
    from sklearn.datasets import load_digits  # a second to import, and not needed for other data

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return ArrayDataset(images, labels, [str(name) for name in digits.target_names], levels=17, name="digits")


def split_holdout(dataset: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """Set `count` images aside for validation; the same seed chooses the same.

    Returns:
        The remaining images, and those set aside, each in the order of `dataset`; with count 0, (dataset, None).
    """
    if not 0 <= count < len(dataset):
        raise ValueError(f"cannot hold out {count} of the {len(dataset)} images in {dataset.name}; some must remain")
    if count == 0:
        return dataset, None
    shuffled = permutation(len(dataset), seed)
    return Subset(dataset, np.sort(shuffled[count:])), Subset(dataset, np.sort(shuffled[:count]))


def evenly_spaced_indices(length: int, count: int) -> np.ndarray:
    """Choose at most `count` of the indices 0 .. length - 1, evenly spaced and ascending: int64."""
    count = min(count, length)
    # The product takes 64 bits, and numpy 1 has 32 by default on Windows.
    return np.arange(count, dtype=np.int64) * length // max(count, 1)


def pixel_statistics(dataset: Dataset, max_images: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels of every channel, in levels; otherwise as `value_statistics`."""
    if dataset.kind != "pixels":
        raise ValueError(f"{dataset.name} holds {dataset.kind}, not pixels: it has no pixel statistics")
    return value_statistics(dataset, max_images)


def value_statistics(dataset: Dataset, max_images: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the values of every channel, over at most `max_images` evenly spaced images."""
    chosen = evenly_spaced_indices(len(dataset), max_images)
    count, total, squares = 0, torch.zeros(dataset.shape[0]).double(), torch.zeros(dataset.shape[0]).double()
    for part in np.array_split(chosen, -(-len(chosen) // 64)):
        values = dataset.images(part).double()
        count += values.numel() // dataset.shape[0]
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    mean = total / count
    return tuple(mean.tolist()), tuple((squares / count - mean.square()).clamp(min=0).sqrt().tolist())
