"""Checking a dataset finds all images that training would stop at, with the line that training would show."""

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_files import encoded, npy, write_folder, write_zip
from PIL import Image

from edm2.datasets.checking import find_broken
from edm2.training import DatasetError, open_dataset
from edm2.training.data.archive import retry
from edm2.training.data.archive.files import FolderFiles, StorageError

COUNT = 40


def images(broken: tuple[int, ...] = (), small: tuple[int, ...] = ()) -> dict[str, bytes]:
    """Images k.png, of which some are cut short and some of another size."""
    files = {f"{k:02}.png": encoded(Image.new("L", (3, 5) if k in small else (4, 4), k)) for k in range(COUNT)}
    return files | {f"{k:02}.png": files[f"{k:02}.png"][:40] for k in broken}


@pytest.fixture(params=[write_folder, write_zip], ids=["folder", "zip"])
def write(request: pytest.FixtureRequest, tmp_path: Path):
    return lambda files: request.param(tmp_path / {write_folder: "data", write_zip: "data.zip"}[request.param], files)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_broken_image_is_found_in_order(write, workers: int):
    data, lines, reports = write(images(broken=(3, 4, 39), small=(7,))), [], []
    found = find_broken(data, workers, lines.append, lambda *report: reports.append(report))
    assert [line.partition(": ")[0] for line in found] == [f"{data}/{k:02}.png" for k in (3, 4, 7, 39)]
    assert "cannot be read" in found[0]
    assert "5x3 pixels with 1 channel, but the first image 00.png has 4x4" in found[2]
    assert reports == [(done, COUNT) for done in range(1, COUNT + 1)]
    assert lines == found
    dataset = open_dataset(data)
    for index, line in zip((3, 4, 7, 39), found, strict=True):
        with pytest.raises(DatasetError) as failure:
            dataset.images([index])
        assert str(failure.value) == f"{line}; edm2 dataset check {data} finds all such files"


def test_a_whole_dataset_has_none(write):
    assert find_broken(write(images()), workers=2) == []
    assert find_broken("digits") == []


def test_the_first_images_may_be_broken_and_all_may(write):
    assert len(find_broken(write(images(broken=(0, 1))), workers=2)) == 2
    assert len(find_broken(write(images(broken=tuple(range(COUNT)))), workers=2)) == COUNT


def test_moments_are_checked_too(write):
    moments = np.ones((2, 3, 3), dtype=np.float32)
    found = find_broken(write({"a.npy": npy(moments), "b.npy": npy(-moments), "c.npy": npy(moments)}))
    assert len(found) == 1
    assert "b.npy: cannot be read: negative standard deviations" in found[0]


@pytest.mark.parametrize("content", ['{"labels": [["x.png", 0]]}', json.dumps({"labels": None, "pixels": "many"})])
def test_what_is_wrong_with_the_whole_is_an_error(write, content: str):
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        find_broken(write(images() | {"dataset.json": content.encode()}))


def test_storage_that_fails_is_no_broken_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: FolderFiles, name: str) -> bytes:
        raise OSError(next(iter(retry.TRANSIENT)), "no answer")

    monkeypatch.setattr(FolderFiles, "read", fail)
    with pytest.raises(StorageError):
        find_broken(write_folder(tmp_path / "data", images()))
