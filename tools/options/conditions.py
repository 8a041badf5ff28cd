"""Conditions besides classes from the command line: `--condition NAME=VALUE`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def read_conditions(given: Sequence[str], seeds: Sequence[int]) -> "dict[str, Tensor] | None":
    """Conditions by name, each [len(seeds), ...]; None if none are given.

    Args:
        given: Texts NAME=NUMBER, for all images, or NAME=FILE.npy: an array with one row for each of the seeds in
            order, or one for all of them.
        seeds: Seeds of the images.

    Raises:
        click.BadParameter: another text, a file that holds no numbers, or another number of rows.
    """
    import torch

    conditions = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{text!r}: write NAME=NUMBER or NAME=FILE.npy", param_hint="'--condition'")
        rows = _rows(name, value)
        if len(rows) not in (1, len(seeds)):
            raise click.BadParameter(
                f"{value}: has {len(rows)} rows for {len(seeds)} seeds; give one row for each, or one for all",
                param_hint="'--condition'",
            )
        conditions[name] = torch.from_numpy(rows).expand(len(seeds), *rows.shape[1:])
    return conditions or None


def _rows(name: str, value: str) -> np.ndarray:
    """An array [rows, ...] in float32 or int64."""
    try:
        rows = np.load(value, allow_pickle=False) if Path(value).is_file() else np.array([float(value)])
    except (OSError, ValueError):
        raise click.BadParameter(
            f"{name}={value}: neither a number nor an NPY file of numbers", param_hint="'--condition'"
        ) from None
    if rows.ndim == 0 or rows.dtype.kind not in "biuf" or not np.isfinite(rows).all():
        raise click.BadParameter(f"{name}={value}: must hold finite numbers, [rows, ...]", param_hint="'--condition'")
    return rows.astype(np.float32 if rows.dtype.kind == "f" else np.int64)
