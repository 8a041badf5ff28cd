"""Captions of a dataset's images to token embeddings, stored beside the images as a condition."""

import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from torch import Tensor

from edm2.datasets.conditions import entry_of
from edm2.datasets.description import check_writable, write_entry
from edm2.datasets.parts import member
from edm2.io.text_encoder import TextEncoder
from edm2.networks import Condition, TokenCondition
from edm2.post_hoc_ema import atomic_output
from edm2.post_hoc_ema.files import parse_json
from edm2.training.data.archive.files import CONDITIONS, DatasetError, normalized
from edm2.training.data.archive.index import open_archive
from edm2.training.data.archive.zip_files import stored_name
from edm2.training.data.conditions import describe_condition
from edm2.training.data.dataset import ArchiveDataset

BATCH = 64
"""Captions that are encoded together."""


def embed(
    path: str | Path,
    captions: str | Path,
    encoder: TextEncoder,
    name: str = "caption",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Condition:
    """Encode a caption for each image of a folder or ZIP, and store the tokens as its condition `name`.

    A ZIP is written anew, so there must be room for a second one.

    Args:
        path: Folder or ZIP of images.
        captions: JSON file: {"image path": "caption", ...} or [["image path", "caption"], ...].
        encoder: The text encoder.
        name: Name of the condition.
        report: Called with the number of captions done and of all.

    Returns:
        What training will know of it.

    Raises:
        DatasetError: Captions are no such JSON, or miss for some images; or there is such a condition already.
        OSError: It cannot be written.
    """
    check_writable(path)
    files, catalog = open_archive(Path(path))
    if name in catalog.condition_names:
        raise DatasetError(f"{path}: has a condition {name} already; remove it, or choose another --name")
    texts = _captions(Path(captions), list(catalog.names))
    arrays = _encoded(texts, encoder, report)
    target = files.path.resolve()
    (_add_to_folder if target.is_dir() else _add_to_zip)(target, name, arrays)
    dataset = ArchiveDataset(*open_archive(Path(path)))
    measured = describe_condition(dataset, name, "tokens", len(dataset), anew=True)
    assert isinstance(measured, TokenCondition)  # as it was asked to be
    condition = replace(measured, encoder=encoder.name)
    known = open_archive(Path(path))[1].conditions
    write_entry(
        path, "conditions", {**(known if isinstance(known, dict) else {}), **entry_of(dataset, {name: condition})}
    )
    return condition


def _captions(path: Path, images: list[str]) -> dict[str, str]:
    """Caption of each image. Raises DatasetError unless all have one."""
    try:
        content = parse_json(path.read_bytes())
        found = {
            normalized(image): text for image, text in (content.items() if isinstance(content, Mapping) else content)
        }
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise DatasetError(f'{path}: must be JSON of the form {{"image path": "caption", ...}}: {error}') from None
    missing = [image for image in images if not isinstance(found.get(normalized(image)), str)]
    if missing:
        raise DatasetError(f"{path}: has no caption for {len(missing):,} images, the first is {missing[0]}; add them")
    return {image: found[normalized(image)] for image in images}


def _encoded(
    texts: Mapping[str, str], encoder: TextEncoder, report: Callable[[int, int], None]
) -> Iterator[tuple[str, bytes]]:
    """Path without suffix and NPY file, float16 [L, size], for each image. A caption that repeats is encoded once."""
    distinct, tokens = list(dict.fromkeys(texts.values())), dict[str, Tensor]()
    for start in range(0, len(distinct), BATCH):
        part = distinct[start : start + BATCH]
        tokens.update(zip(part, encoder(part), strict=True))
        report(min(start + BATCH, len(distinct)), len(distinct))
    for image, text in texts.items():
        buffer = io.BytesIO()
        np.save(buffer, tokens[text].numpy().astype(np.float16))
        yield os.path.splitext(image)[0], buffer.getvalue()


def _add_to_folder(folder: Path, name: str, arrays: Iterable[tuple[str, bytes]]) -> None:
    for stem, data in arrays:
        with atomic_output(folder / CONDITIONS / name / f"{stem}.npy") as temporary:
            Path(temporary).write_bytes(data)


def _add_to_zip(path: Path, name: str, arrays: Iterable[tuple[str, bytes]]) -> None:
    with atomic_output(path) as temporary:
        shutil.copyfile(path, temporary)
        with ZipFile(temporary, "a") as archive:
            prefix = stored_name(archive.namelist(), f"{CONDITIONS}/{name}")
            for stem, data in arrays:
                archive.writestr(member(f"{prefix}/{stem}.npy"), data)
