"""Conditions of images to be drawn, in all the forms that people have them, or those of held-out images."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edm2.io.text_encoder import load_text_encoder
from edm2.networks import Condition, TokenCondition
from edm2.training import Dataset, TrainingConfig
from edm2.training.data.conditions import with_conditions
from edm2.training.data.dataset import evenly_spaced_indices, split_holdout, stack_padded

MOST_HELD_OUT = 1000
"""Held-out images, evenly spaced, whose conditions samples are drawn for."""


def rows_of_conditions(known: Iterable[Condition], given: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """Conditions of `count` images by name, [count, ...] each.

    Args:
        known: Conditions of the network.
        given: Values by name. A tensor or array has one row per image, or is that of a single one; a list has one
            value per image. A value is a number, a sequence of numbers, an image of Pillow, or a text for tokens whose
            encoder the network knows. One value goes with all images. Numbers of names that are not known are handed
            on: a network of another program may take them.
        count: Number of images.

    Raises:
        ValueError: another number of values, or another form.
        TextEncoderError: the encoder cannot be loaded.
    """
    by_name = {condition.name: condition for condition in known}
    rows = {}
    for name, value in given.items():
        condition = by_name.get(name)
        values = _rows_of_numbers(name, value) if condition is None else _rows(condition, value)
        if len(values) not in (1, count):
            raise ValueError(f"condition {name}: {len(values)} rows for {count} seeds; give one row per seed")
        values = values.expand(count, *values.shape[1:])
        if condition is not None:
            condition.check(values, count)
        rows[name] = values
    return rows


@dataclass(frozen=True)
class SampleConditions:
    """Conditions of samples by their numbers: sample k gets row k modulo the number of rows."""

    rows: Mapping[str, Tensor]
    """Values by name, [rows, ...]."""
    classes: tuple[int, ...] | None = None
    """Class of each row, which goes with its conditions; None: classes are chosen as without conditions."""

    def of(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Conditions of some samples, by name."""
        return {name: values[[number % len(values) for number in numbers]] for name, values in self.rows.items()}

    def classes_of(self, numbers: Sequence[int]) -> list[int] | None:
        """Classes of some samples, or None."""
        return None if self.classes is None else [self.classes[number % len(self.classes)] for number in numbers]

    def digest(self) -> str:
        """Hash of all values and classes."""
        digest = hashlib.sha256(repr((self.classes, *((n, v.dtype, v.shape) for n, v in self.rows.items()))).encode())
        for values in self.rows.values():
            digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def held_out_conditions(config: TrainingConfig, dataset: Dataset) -> SampleConditions | None:
    """Conditions and classes of images that a run holds out, or of training images if it holds out none.

    Args:
        config: The run.
        dataset: Its images.

    Returns:
        None for a network without conditions.

    Raises:
        DatasetError: a condition is missing.
    """
    known = () if config.network is None else config.network.conditions
    if not known:
        return None
    conditioned = with_conditions(dataset, known, config.make_conditions)
    trained, held_out = split_holdout(conditioned, config.holdout, config.seed)
    images = held_out or trained
    chosen = evenly_spaced_indices(len(images), MOST_HELD_OUT)
    labels = images.labels(chosen).tolist() if config.own_network.label_dim else [-1]
    rows = {name: images.read_condition(name, chosen) for name in conditioned.condition_names}
    return SampleConditions(rows, tuple(labels) if min(labels) >= 0 else None)


def _rows(condition: Condition, value: Any) -> Tensor:
    """Values of a condition as [rows, ...]."""
    dims = len(condition.shape(1))
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple) and value and isinstance(value[0], str):
        return stack_padded(_encoded(condition, value), condition.name)
    if isinstance(value, Image.Image):
        value = [value]
    if isinstance(value, list | tuple) and value and isinstance(value[0], Image.Image | np.ndarray | Tensor):
        return stack_padded([_as_tensor(one) for one in value], condition.name)
    values = _as_tensor(value)
    if values.ndim == 0 or (values.ndim == dims - 1 and condition.kind != "scalar"):
        return values[None]
    return values


def _rows_of_numbers(name: str, value: Any) -> Tensor:
    """Values of a condition that the network does not describe, as [rows, ...]."""
    try:
        return torch.atleast_1d(torch.as_tensor(value))
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"condition {name}: the network describes none of this name, so it takes numbers") from None


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Image.Image):
        return torch.from_numpy(np.atleast_3d(np.array(value)).transpose(2, 0, 1).copy())  # [C, H, W]
    values = torch.as_tensor(np.array(value) if isinstance(value, np.ndarray) else value)  # a copy: it may be read-only
    return values if values.dtype == torch.uint8 else values.float()


def _encoded(condition: Condition, texts: Sequence[str]) -> list[Tensor]:
    """Tokens of texts. Raises ValueError if the condition is none, or its encoder is unknown."""
    if not isinstance(condition, TokenCondition) or condition.encoder is None:
        why = "was made without a text encoder" if isinstance(condition, TokenCondition) else f"is {condition}"
        raise ValueError(f"condition {condition.name}: {why}, so it takes numbers or a file, not the text {texts[0]!r}")
    return load_text_encoder(condition.encoder)(texts)
