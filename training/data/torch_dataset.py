"""Any dataset of PyTorch as a dataset of this package: pixels, or floats of any range."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edm2.training.data.archive.catalog import MAX_CLASSES
from edm2.training.data.archive.decoding import CHANNELS
from edm2.training.data.dataset import Dataset, DatasetError, Indices, Loaded, stack_padded
from edm2.training.imports import import_callable

LABELS = "labels are class indices, whole numbers from 0"


class TorchDataset(Dataset):
    """A map-style `torch.utils.data.Dataset`.

    An item is an image, (image, label), or a dict with "image", "label" if there are classes, and conditions by their
    names. An image is a PIL image, an array [H, W] or [H, W, C], or a tensor [C, H, W]: uint8 pixels, or floats of any
    range and any number of channels, such as measurements or spectrograms. All are of one size.

    Labels are taken from its attribute `targets` or `labels` where it has one, as torchvision's datasets do, and the
    names of classes from `classes`; otherwise all items are read once for them.

    Args:
        data: The dataset; items may be read in other processes, so it must survive a fork.
    """

    def __init__(self, data: Any, name: str = "dataset") -> None:
        self._data = data
        if not len(data):
            raise DatasetError(f"{name}: holds no images")
        image, label, conditions = self._item(0, name)
        kind, levels = ("pixels", 256) if image.dtype == torch.uint8 else ("values", 0)
        self._conditions = tuple(conditions)
        self._form = _form(image)
        self._labels = torch.full([len(data)], -1)
        names: Sequence[str] = ()
        if label is not None:
            known = getattr(data, "targets", getattr(data, "labels", None))
            if known is None:
                known = [-1 if (own := self._item(i, name)[1]) is None else own for i in range(len(data))]
            self._labels = _checked_labels(np.asarray(known), len(data), name)
            count = int(self._labels.max()) + 1
            names = getattr(data, "classes", None) or [str(k) for k in range(count)]
            if count > len(names):
                raise DatasetError(f"{name}: has an image of label {count - 1}, but names of {len(names)} classes")
        super().__init__(name, image.shape, kind, levels, names)

    def __len__(self) -> int:
        return len(self._data)

    def images(self, indices: Indices) -> Tensor:
        return self.read(indices)[0]

    def labels(self, indices: Indices) -> Tensor:
        return self._labels.index_select(0, torch.as_tensor(indices, dtype=torch.int64))

    def conditions(self, indices: Indices) -> Mapping[str, Tensor] | None:
        return self.read(indices)[2]

    def read(self, indices: Indices) -> Loaded:
        """Images, labels and conditions, from one visit to each item."""
        items = [self._item(int(index), self.name) for index in indices]
        for index, (image, _, given) in zip(indices, items, strict=True):
            if (form := _form(image)) != self._form:
                raise DatasetError(f"{self.name}: item {int(index)} is {form}, the first {self._form}")
            if given.keys() != set(self._conditions):
                found, first = (", ".join(sorted(names)) or "none" for names in (given, self._conditions))
                raise DatasetError(f"{self.name}: item {int(index)} has conditions {found}, the first {first}")
        conditions = {
            name: stack_padded([given[name] for _, _, given in items], f"{self.name}/{name}")
            for name in self._conditions
        }
        return torch.stack([image for image, _, _ in items]), self.labels(indices), conditions or None

    def _item(self, index: int, name: str) -> tuple[Tensor, int | None, dict[str, Tensor]]:
        item = self._data[index]
        conditions: dict[str, Any] = {}
        if isinstance(item, Mapping):
            conditions = {key: value for key, value in item.items() if key not in ("image", "label")}
            item = (item["image"], item.get("label")) if "image" in item else None
        elif not isinstance(item, tuple | list):
            item = (item, None)
        if item is None or len(item) != 2:
            raise DatasetError(f'{name}: item {index} must be an image, (image, label), or a dict with "image"')
        image = _as_image(item[0])
        if image is None:
            raise DatasetError(
                f"{name}: the image of item {index} is a {type(item[0]).__name__}; give a PIL image, or uint8 or "
                "floats, [C, H, W] as a tensor or [H, W, C] as an array"
            )
        try:
            label = None if item[1] is None else operator.index(item[1])
        except TypeError:
            raise DatasetError(f"{name}: the label of item {index} is {item[1]}; {LABELS}") from None
        return image, label, {key: torch.as_tensor(value) for key, value in conditions.items()}


def _checked_labels(labels: np.ndarray, images: int, name: str) -> Tensor:
    """Labels int64 [N], -1 where there is none. Raises DatasetError for what is no class index."""
    if labels.dtype.kind not in "biu" or labels.shape != (images,):
        found = f"{labels.dtype} and shape {list(labels.shape)}"
        raise DatasetError(f"{name}: has labels of type {found}, for {images} images; {LABELS}")
    if (strange := labels[(labels < -1) | (labels >= MAX_CLASSES)]).size:
        raise DatasetError(f"{name}: has an image of label {strange[0]}; {LABELS}")
    return torch.from_numpy(labels.astype(np.int64))


def _form(image: Tensor) -> str:
    return f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"


def _as_image(value: Any) -> Tensor | None:
    """uint8 or float32 [C, H, W]; None for something else."""
    if isinstance(value, Image.Image) and value.mode not in CHANNELS and value.mode[0] not in "IF":
        value = value.convert("RGB")  # else colors of a palette would be their numbers
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "uf" or array.ndim not in (2, 3):
            return None
        value = torch.from_numpy(np.atleast_3d(array).transpose(2, 0, 1).copy())
    value = value.unsqueeze(0) if value.ndim == 2 else value
    if value.ndim != 3 or not (value.dtype == torch.uint8 or value.is_floating_point()):
        return None
    return value if value.dtype == torch.uint8 else value.float()


def as_dataset(data: Any, name: str = "dataset") -> Dataset:
    """A dataset as it is, if it is one of this package; another of PyTorch in a `TorchDataset`."""
    return data if isinstance(data, Dataset) else TorchDataset(data, name)


def imported_dataset(target: str) -> Dataset:
    """Call what a user names as `module:callable` for a dataset."""
    try:
        data = import_callable(target, "a dataset")()
    except ValueError as error:
        raise DatasetError(str(error)) from error
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) and not isinstance(data, Dataset):
        raise DatasetError(f"{target}: makes a {type(data).__name__}, not a dataset of torch.utils.data")
    return as_dataset(data, target)
