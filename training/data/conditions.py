"""Conditions of a dataset's images: stored beside them, or made of them; and what the network must know of them.

    conditions/NAME/<path of the image>.png or .npy      a 1-D array is a vector (of one number: a scalar), a 2-D one
                                                         tokens, a 3-D one or a picture an image

Their mean and standard deviation per channel go into `NetworkConfig.conditions`, so a network standardizes them itself.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edm2.networks import Condition, ImageCondition, ScalarCondition, TokenCondition, VectorCondition
from edm2.networks.conditions import KINDS, condition_from_json, noise_levels
from edm2.training.data.dataset import Dataset, DatasetError, Indices, Loaded, Subset, evenly_spaced_indices

MAX_MEASURED = 10_000
"""Images, evenly spaced, whose conditions are measured for training."""

CHUNK = 64
"""Images that are read together."""


# ----------------------------------------------------------------------------------------------------------------------
# Conditions made of the images


@dataclass(frozen=True)
class Downsample:
    """Low resolution: averages over squares of `factor` pixels; of latents, of their means."""

    factor: int

    def __call__(self, data: Tensor, kind: str) -> Tensor:
        """Stored images [N, C, H, W] -> float32 [N, C, H / factor, W / factor]."""
        data = data.chunk(2, dim=1)[0] if kind == "moments" else data
        if any(side % self.factor for side in data.shape[2:]):
            raise DatasetError(f"images of {data.shape[2]}x{data.shape[3]} do not divide by downsample:{self.factor}")
        return F.avg_pool2d(data.float(), self.factor)


MAKERS: dict[str, Callable[[int], Downsample]] = {"downsample": Downsample}
"""Ways to make a condition, by their names in settings; each takes a whole number."""


def parse_maker(text: str) -> tuple[str, Downsample]:
    """Parse NAME=downsample:FACTOR. Raises ValueError for another text."""
    name, _, rest = text.partition("=")
    how, _, number = rest.partition(":")
    if not name or how not in MAKERS or not number.isdecimal() or int(number) < 2:
        raise ValueError(f"{text!r}: write NAME=downsample:FACTOR, such as lowres=downsample:2")
    return name, MAKERS[how](int(number))


# ----------------------------------------------------------------------------------------------------------------------
# A dataset with conditions


class Conditioned(Subset):
    """A dataset with some conditions: those that it has, and those that are made of its images.

    Args:
        dataset: The images.
        names: Conditions to read.
        makers: Texts of `parse_maker`.

    Raises:
        DatasetError: there is no such condition.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str], makers: Sequence[str] = ()) -> None:
        super().__init__(dataset, range(len(dataset)))
        self.makers = dict(map(parse_maker, makers))
        self.names = tuple(names)
        for name in self.names:
            if name not in self.makers and name not in dataset.condition_names:
                has = ", ".join(dataset.condition_names) or "none"
                raise DatasetError(
                    f"{dataset.name}: has no condition {name} (it has {has}); store one in conditions/{name}, or make "
                    f"it: --make-condition {name}=downsample:2"
                )

    @property
    def condition_names(self) -> tuple[str, ...]:
        return self.names

    def read(self, indices: Indices) -> Loaded:
        images, labels, own = self.dataset.read(indices)
        own = own or {}
        return images, labels, {name: self._values(name, indices, images, own) for name in self.names}

    def conditions(self, indices: Indices) -> Mapping[str, Tensor]:
        return {name: self.read_condition(name, indices) for name in self.names}

    def read_condition(self, name: str, indices: Indices) -> Tensor:
        if name in self.makers:
            return self.makers[name](self.dataset.images(indices), self.kind)
        return self.dataset.read_condition(name, indices)

    def fingerprint(self) -> str | None:
        return self.dataset.fingerprint()

    def _values(self, name: str, indices: Indices, images: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        if name in self.makers:
            return self.makers[name](images, self.kind)
        return own[name] if name in own else self.dataset.read_condition(name, indices)


def with_conditions(dataset: Dataset, known: Collection[Condition], makers: Sequence[str] = ()) -> Dataset:
    """A dataset with those of the conditions of a network that it has, or that `makers` make; as it is, if none.

    Levels of noise on images are drawn in training.
    """
    drawn = noise_levels(known)
    names = [condition.name for condition in known if condition.name not in drawn]
    return Conditioned(dataset, names, makers) if names else dataset


def padded(tokens: Tensor, length: int) -> Tensor:
    """Pad tokens [N, L, size] by NaN to `length`, so that all batches have one shape."""
    return F.pad(tokens, (0, 0, 0, max(0, length - tokens.shape[1])), value=torch.nan)


# ----------------------------------------------------------------------------------------------------------------------
# What the network must know


def describe_condition(
    dataset: Dataset,
    name: str,
    kind: str | None = None,
    max_images: int = MAX_MEASURED,
    report: Callable[[int, int], None] = lambda done, total: None,
    *,
    anew: bool = False,
) -> Condition:
    """Measure a condition of a dataset, or take what is stored of it.

    Args:
        dataset: Images with this condition.
        name: Name of the condition.
        kind: Kind of the condition; default: by the shape of its values.
        max_images: Images to measure, evenly spaced.
        report: Called with the number of images done and of all.
        anew: Measure, whatever is stored.

    Raises:
        DatasetError: values are missing, of changing shape, not finite, or never vary; or they are not of this kind.
    """
    where = f"{dataset.name}: condition {name}"
    if kind is not None and kind not in KINDS:
        raise DatasetError(f"{where}: unknown kind {kind!r}; there are {', '.join(KINDS)}")
    stored = dataset.known_condition(name)
    if not anew and "kind" in stored and kind in (None, stored["kind"]):
        try:
            return condition_from_json({**stored, "name": name})
        except ValueError as error:
            raise DatasetError(f"{where}: {error}; measure anew with edm2 dataset stats") from None
    indices = evenly_spaced_indices(len(dataset), max_images)
    moments, length, first = Moments(), 0, torch.empty(0)
    for start in range(0, len(indices), CHUNK):
        values = dataset.read_condition(name, indices[start : start + CHUNK])
        values = values[:, None] if values.ndim == 1 else values
        if not start:
            kind, first = kind or kind_of(values), values
            _check_kind(values, kind, where)
        is_tokens = kind == TokenCondition.kind
        if values.shape[1 + is_tokens :] != first.shape[1 + is_tokens :]:
            raise DatasetError(f"{where}: {list(values.shape[1:])} for one image, {list(first.shape[1:])} for another")
        by_channel = values.double().movedim(2 if is_tokens else 1, 0).flatten(1).numpy()  # [channels, values]
        if is_tokens:
            by_channel, length = by_channel[:, ~np.isnan(by_channel[0])], max(length, values.shape[1])
        if not np.isfinite(by_channel).all():
            raise DatasetError(f"{where}: holds NaN or infinity; store finite numbers")
        moments.add(by_channel)
        report(min(start + CHUNK, len(indices)), len(indices))
    mean, std = moments.mean_and_std()
    if not (std > 0).any():
        raise DatasetError(f"{where}: never varies, so there is nothing to learn from; leave it out")
    about: dict[str, Any] = {"mean": tuple(mean), "std": tuple(np.where(std > 0, std, 1))}
    match kind:
        case "scalar":
            return ScalarCondition(name, **about)
        case "vector":
            return VectorCondition(name, first.shape[1], **about)
        case "image":
            return ImageCondition(name, first.shape[1], **about)
    if len(indices) < len(dataset):
        length = max(length, dataset.most_tokens(name))
    return TokenCondition(name, first.shape[2], length=length, encoder=stored.get("encoder"), **about)


class Moments:
    """Sums from which mean and standard deviation of channels follow.

    They are sums of differences from the mean of the first values, which keeps digits where the mean is large.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shift = np.zeros((1, 1))
        self.sums = np.zeros((2, 1))

    def add(self, values: np.ndarray) -> None:
        """Add values [channels, any number of them], at least one."""
        if not self.count:
            self.shift = values.mean(axis=1, keepdims=True)
        moved = values - self.shift
        self.sums = self.sums + np.stack([moved.sum(axis=1), np.square(moved).sum(axis=1)])
        self.count += values.shape[1]

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel."""
        mean, square = self.sums / self.count
        return mean + self.shift[:, 0], np.sqrt(np.maximum(square - np.square(mean), 0))


def kind_of(values: Tensor | np.ndarray) -> str:
    """Kind of condition whose values [N, ...] have this shape."""
    match tuple(values.shape[1:]):
        case () | (1,):
            return "scalar"
        case (_,):
            return "vector"
        case (_, _):
            return "tokens"
    return "image"


def _check_kind(values: Tensor, kind: str, where: str) -> None:
    found = kind_of(values)
    if found != kind and (found, kind) != ("scalar", "vector"):
        raise DatasetError(f"{where}: values of shape {list(values.shape[1:])} are {found}, not {kind}")
