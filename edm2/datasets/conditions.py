"""Conditions of a dataset's images: looked through, measured and described."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from edm2.datasets.parts import read_all
from edm2.networks import Condition
from edm2.training.data.archive.catalog import Catalog, condition_files, missing_condition
from edm2.training.data.archive.decoding import read_condition
from edm2.training.data.archive.files import DatasetError, Files
from edm2.training.data.conditions import describe_condition, kind_of
from edm2.training.data.dataset import CONTENTS, ArchiveDataset


def broken_conditions(files: Files, catalog: Catalog, workers: int = 1) -> Iterator[str]:
    """Read the conditions of all images; yield a line for each that training would stop at."""
    for name in catalog.condition_names:
        found = condition_files(files, name, catalog.names)
        if line := missing_condition(files, name, catalog.names, found):
            yield line
        stored = [file for file in found if file is not None]
        first: tuple[tuple[int, ...], str] | None = None
        varies, constant = False, None
        for file, values in zip(stored, read_all(partial(read_condition, files), stored, workers), strict=True):
            if isinstance(values, DatasetError):
                yield str(values)
                continue
            shape = values.shape[1:] if values.ndim == 2 else values.shape  # tokens may be more or fewer
            first = first or (shape, file)
            constant = values.flat[0] if constant is None else constant
            varies = varies or bool((values != constant).any())
            if shape != first[0]:
                yield f"{files.path}/{file}: is {list(shape)}, but {first[1]} is {list(first[0])}; make all alike"
        if first is not None and not varies:
            yield f"{files.path}: condition {name} never varies, so there is nothing to learn from; leave it out"


def measured_conditions(
    dataset: ArchiveDataset,
    max_images: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Condition]:
    """Measure all conditions of a dataset, by name; what is known of their encoders stays.

    Raises:
        DatasetError: One is missing for an image, or unusable.
    """
    most = max_images or len(dataset)
    kinds = {name: dataset.known_condition(name).get("kind") for name in dataset.condition_names}
    return {name: describe_condition(dataset, name, kind, most, report, anew=True) for name, kind in kinds.items()}


def entry_of(dataset: ArchiveDataset, conditions: dict[str, Condition]) -> dict[str, Any]:
    """Entry "conditions" of dataset.json."""
    return {
        name: {**condition.to_json(), CONTENTS: dataset.condition_contents(name)}
        for name, condition in conditions.items()
    }


def describe_conditions(files: Files, catalog: Catalog) -> list[tuple[str, str]]:
    """Subject and phrase for each condition: its form, as that of the first image, and how many images have none."""
    lines = []
    for name in catalog.condition_names:
        found = condition_files(files, name, catalog.names)
        stored = [file for file in found if file is not None]
        read = read_all(partial(read_condition, files), stored[:1], workers=1)
        values = next(read, DatasetError("no image has it"))
        phrase = str(values) if isinstance(values, DatasetError) else f"{kind_of(values[None])} {list(values.shape)}"
        missing = f", missing for {found.count(None):,} images" if None in found else ""
        lines.append((f"condition {name}", phrase + missing))
    return lines
