"""Conditions besides classes from the command line: `--condition NAME=VALUE`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from edm2.networks import Condition
    from edm2.sampling.conditions import SampleConditions
    from edm2.training import Dataset


CONDITION_HELP = (
    "What else the network is told: numbers, a text, a picture or NPY file for all images; or a folder of them, or an "
    "NPY file of rows, for the seeds in order. Repeatable."
)
HELD_OUT_HELP = "Default: the conditions and classes of held-out images of the run."


def read_conditions(
    given: Sequence[str], seeds: Sequence[int], known: "Sequence[Condition]" = ()
) -> "dict[str, Tensor] | None":
    """Conditions by name, each [len(seeds), ...]; None if none are given.

    Args:
        given: Texts NAME=VALUE. A value is a number, numbers with commas between them, a text for tokens that were made
            by a text encoder, a file (NPY, or a picture) for all images, or an NPY file with one row for each of the
            seeds in order; or a folder of files, which in sorted order go with the seeds in order.
        seeds: Seeds of the images.
        known: Conditions of the network.
    """
    from edm2.sampling.conditions import rows_of_conditions

    by_name = {condition.name: condition for condition in known}
    values = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{text!r}: write NAME=NUMBER or NAME=FILE.npy", param_hint="'--condition'")
        try:
            values[name] = _value(name, value, by_name.get(name))
            rows_of_conditions(known, {name: values[name]}, len(seeds))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="'--condition'") from None
    return rows_of_conditions(known, values, len(seeds)) if values else None


def conditions_to_score(
    run: Path, given: Sequence[str], count: int, known: "Sequence[Condition]", dataset: "Dataset | None" = None
) -> "SampleConditions | None":
    """Conditions of the samples that a run is scored by: those given, else those of images that it holds out.

    Args:
        run: Folder of the run.
        given: Texts of --condition.
        count: Samples per score.
        known: Conditions of the network.
        dataset: The run's images, if they are open.

    Raises:
        click.BadParameter: as `read_conditions`, or a condition is needed and not given.
        ValueError: they are to be held-out ones, and the run's images are not there.
    """
    from edm2.sampling.conditions import SampleConditions, held_out_conditions
    from edm2.training import read_run_config
    from edm2.training.run.run_folder import open_run_data

    if (rows := read_conditions(given, range(count), known)) is not None:
        return SampleConditions(rows)
    if not known:
        return None
    try:
        config = read_run_config(run)
        return held_out_conditions(config, open_run_data(run) if dataset is None else dataset)
    except ValueError as error:
        names = ", ".join(condition.name for condition in known)
        raise ValueError(f"{error}; samples need {names}: give --condition NAME=VALUE") from None


def stated_levels(known: "Sequence[Condition]", given: "SampleConditions | None") -> list[str]:
    """Lines that say how noisy image conditions are taken to be, of networks that were trained with noise on them."""
    from edm2.networks.conditions import noise_levels

    lines = []
    for name in noise_levels(known):
        values = None if given is None else given.rows.get(name)
        if values is None:
            lines.append(f"{name}: 0, as none is given (--condition {name}=LEVEL)")
        else:
            low, high = values.min().item(), values.max().item()
            lines.append(f"{name}: {low:g}" + (f" to {high:g}" if high > low else ""))
    return lines


def named_paths(given: Sequence[str]) -> dict[str, str]:
    """Files and folders among the values of `--condition`, by "condition NAME"."""
    pairs = (text.partition("=")[::2] for text in given)
    return {f"condition {name}": value for name, value in pairs if value and Path(value).exists()}


def _value(name: str, value: str, condition: "Condition | None") -> Any:
    """A value as `rows_of_conditions` takes it. Raises ValueError for another text, or a file without numbers."""
    path = Path(value)
    if path.is_dir():
        from edm2.post_hoc_ema.files import visible_files
        from edm2.training.data.archive.files import SUFFIXES, suffix_of

        files = (file for file in visible_files(path, "**/*") if file.is_file())
        found = sorted(file for file in files if suffix_of(file.name) in SUFFIXES)  # not generation.json
        if not found:
            raise ValueError(f"{name}={value}: the folder holds no pictures or NPY files")
        return [_read(file) for file in found]
    if path.is_file() and condition is not None:
        return _read(path)
    if condition is not None and condition.kind == "tokens":
        return value
    try:
        numbers = np.load(value, allow_pickle=False) if path.is_file() else _numbers(value, condition)
    except (OSError, ValueError):
        raise ValueError(f"{name}={value}: neither a number nor an NPY file of numbers") from None
    if numbers.ndim == 0 or numbers.dtype.kind not in "biuf" or not np.isfinite(numbers).all():
        raise ValueError(f"{name}={value}: must hold finite numbers, [rows, ...]")
    return numbers.astype(np.float32 if numbers.dtype.kind == "f" else np.int64)


def _numbers(text: str, condition: "Condition | None") -> np.ndarray:
    numbers = np.array([float(number) for number in text.split(",")])
    return numbers[None] if condition is not None and condition.kind == "vector" else numbers


def _read(path: Path) -> np.ndarray:
    """Read a condition as datasets have it: pixels, or numbers in any shape."""
    from edm2.training.data.archive.decoding import read_condition
    from edm2.training.data.archive.files import FolderFiles

    return read_condition(FolderFiles(path.parent), path.name)
