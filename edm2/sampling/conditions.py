"""Conditions of images to be drawn, in all the forms that people have them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edm2.io.text_encoder import load_text_encoder
from edm2.networks import Condition, TokenCondition
from edm2.training.data.dataset import stack_padded


def rows_of_conditions(known: Iterable[Condition], given: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """Conditions of `count` images by name, [count, ...] each.

    Args:
        known: Conditions of the network.
        given: Values by name. A tensor or array has one row per image, or is that of a single one; a list has one
            value per image. A value is a number, a sequence of numbers, an image of Pillow, or a text for tokens whose
            encoder the network knows. One value goes with all images. Names that are not known are handed on.
        count: Number of images.

    Raises:
        ValueError: another number of values, or another form.
        TextEncoderError: the encoder cannot be loaded.
    """
    by_name = {condition.name: condition for condition in known}
    rows = {}
    for name, value in given.items():
        condition = by_name.get(name)
        values = torch.as_tensor(value) if condition is None else _rows(condition, value)
        if len(values) not in (1, count):
            raise ValueError(f"condition {name}: {len(values)} rows for {count} seeds; give one row per seed")
        values = values.expand(count, *values.shape[1:])
        if condition is not None:
            condition.check(values[:, None] if values.ndim == 1 else values, count)
        rows[name] = values
    return rows


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
