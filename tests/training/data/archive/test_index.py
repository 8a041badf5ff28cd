"""A large ZIP is listed once. The index is a copy of what is in it: never needed, never trusted, never in the way."""

import json
import os
import pickle
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import npy

from edm2.datasets.parts import member
from edm2.training.data.archive import catalog, index, zip_files
from edm2.training.data.dataset import Dataset, DatasetError, open_dataset
from edm2.training.data.loader import data_loader


@pytest.fixture(autouse=True)
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five members are many, and the user's cache is in the test's own folder."""
    monkeypatch.setattr(index, "LARGE", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, count: int = 12, value: float = 0, deflated: bool = True, **entries: object) -> Path:
    """Moments of a few images; some deflated, all in an order of their own, and names beyond ASCII."""
    names = [f"{k % 3}/ä{k:02}.npy" for k in range(count)]
    with zipfile.ZipFile(path, "w") as file:
        for k in reversed(range(count)):
            data = npy(np.full((8, 2, 2), value + k, dtype=np.float32))
            file.writestr(names[k], data, zipfile.ZIP_DEFLATED if deflated and k % 3 else zipfile.ZIP_STORED)
        labels = {"labels": [[name, k % 4] for k, name in enumerate(names)], "class_names": ["w", "x", "y", "ż"]}
        file.writestr("dataset.json", json.dumps(labels | entries))
        file.writestr("notes.txt", "not an image")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.zip", latents={"vae": "some"})


def beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.index")


def contents(dataset: Dataset) -> tuple:
    everything = range(len(dataset))
    described = (dataset.name, dataset.shape, dataset.kind, dataset.class_names, dataset.latents, dataset.pixel_stats)
    return described, dataset.images(everything).tolist(), dataset.labels(everything).tolist()


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows whenever the directory of a ZIP, or dataset.json, is read."""
    seen: list[str] = []

    def counted(name: str, function: Callable) -> Callable:
        return lambda *arguments: (seen.append(name), function(*arguments))[1]

    monkeypatch.setattr(zip_files, "read_members", counted("directory", zip_files.read_members))
    monkeypatch.setattr(catalog, "read_description", counted("labels", catalog.read_description))
    return seen


def test_the_second_opening_lists_nothing(data: Path, listings: list[str]):
    first = contents(open_dataset(data))
    assert listings == ["directory", "labels"]
    assert beside(data).exists()
    assert contents(open_dataset(data)) == first
    assert listings == ["directory", "labels"]


def test_small_zips_and_folders_get_no_index(tmp_path: Path):
    small = write(tmp_path / "small.zip", count=3)
    with zipfile.ZipFile(write(tmp_path / "data.zip")) as file:
        file.extractall(tmp_path / "folder")
    open_dataset(small)
    open_dataset(tmp_path / "folder")
    assert not list(tmp_path.rglob("*.index"))


# ----------------------------------------------------------------------------------------------------------------------
# When it is not to be used


@pytest.mark.parametrize("change", ["other contents", "same size and time", "touched"])
def test_a_changed_zip_is_listed_again(tmp_path: Path, listings: list[str], change: str):
    data = write(tmp_path / "data.zip", deflated=False)
    open_dataset(data)
    before = data.stat()
    if change != "touched":
        write(data, value=100, deflated=False)
    if change == "same size and time":
        assert data.stat().st_size == before.st_size
        os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    images = open_dataset(data).images(range(12))
    assert images.min() == (0 if change == "touched" else 100)
    assert listings == ["directory", "labels"] * 2


def test_what_is_cut_short_or_something_else_is_mended_silently(data: Path, listings: list[str]):
    expected = contents(open_dataset(data))
    whole = beside(data).read_bytes()
    for other in (b"", b"hello", pickle.dumps(print), whole[:100], whole[:-1]):
        beside(data).write_bytes(other)
        for _ in range(2):
            listings.clear()
            assert contents(open_dataset(data)) == expected
        assert not listings, "not mended"


def test_an_index_of_another_version_is_replaced(data: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch):
    open_dataset(data)
    monkeypatch.setattr(index, "VERSION", index.VERSION + 1)
    open_dataset(data)
    assert len(listings) == 4


# ----------------------------------------------------------------------------------------------------------------------
# Where it lies


@pytest.fixture
def read_only(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the ZIP cannot be written to; not by permissions, which do not stop an administrator."""
    touch = Path.touch

    def refusing(self: Path, *arguments, **options) -> None:
        if self.parent == data.parent:
            raise PermissionError(13, "Permission denied")
        touch(self, *arguments, **options)

    monkeypatch.setattr(Path, "touch", refusing)


@pytest.mark.usefixtures("read_only")
def test_the_users_cache_serves_read_only_folders(data: Path, tmp_path: Path, listings: list[str]):
    for _ in range(2):
        open_dataset(data)
    assert listings == ["directory", "labels"]
    assert not beside(data).exists()
    assert len(list((tmp_path / "cache/edm2").iterdir())) == 1


def test_a_full_disk_does_not_matter(data: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index, "save_file", full)
    assert len(open_dataset(data)) == 12
    assert sorted(path.name for path in data.parent.rglob("*") if path.is_file()) == ["data.zip"]


# ----------------------------------------------------------------------------------------------------------------------
# Workers


@pytest.fixture(params=["fork", "spawn"])
def start_method(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(request.param, force=True)
    yield
    torch.multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("start_method")
def test_workers_list_nothing_either(data: Path, monkeypatch: pytest.MonkeyPatch):
    """Theirs is what was handed to them; a directory that is gone by then proves it."""
    dataset = open_dataset(data)
    expected = contents(dataset)[1]
    intact, end = data.read_bytes(), data.read_bytes().index(b"PK\1\2")
    data.write_bytes(intact[:end] + bytes(len(intact) - end))
    images, _, _ = next(data_loader(dataset, [list(range(12))], workers=1))
    assert images.tolist() == expected


# ----------------------------------------------------------------------------------------------------------------------
# ImageNet


def write_sparse_latents(path: Path, entries: int) -> None:
    """Moments of 512x512 images of 1000 classes; all but every 1,024th member are holes in the file."""
    contents, names = npy(np.ones((8, 64, 64), dtype=np.float32)), [f"img-mean-std-{i:08}.npy" for i in range(entries)]
    labels, checksum = [[name, i % 1000] for i, name in enumerate(names)], zlib.crc32(contents)
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            info = member(name)
            if i % 1024 == 0:
                archive.writestr(info, contents)
                continue
            info.header_offset, info.CRC = archive.start_dir, checksum
            info.file_size = info.compress_size = len(contents)
            archive.filelist.append(info)
            archive.start_dir += zipfile.sizeFileHeader + len(name) + len(contents)  # where the next member goes
        archive.writestr(member("dataset.json"), json.dumps({"labels": labels}))


@pytest.mark.slow
def test_a_million_entries_open_in_no_time_from_the_second_time_on(tmp_path: Path):
    """The number of ImageNet's training images, in a sparse file; in 2 s, and a tenth of that on an idle machine."""
    path = tmp_path / "large.zip"
    write_sparse_latents(path, 1_281_167)
    first = open_dataset(path)
    start = time.perf_counter()
    second = open_dataset(path)
    assert time.perf_counter() - start < 2
    assert len(second) == 1_281_167
    assert torch.equal(second.labels(range(0, 1_281_167, 1000)), first.labels(range(0, 1_281_167, 1000)))
    assert torch.equal(second.images([0, 1024 * 1251]), torch.ones(2, 8, 64, 64))
    with pytest.raises(DatasetError, match="not where the directory says"):
        second.images([1])  # a hole in the sparse file
