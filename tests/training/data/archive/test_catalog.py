"""What people's folders and ZIP files look like, and which images and classes are seen in them."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from dataset_files import encoded, npy, write_folder, write_zip
from PIL import Image

from edm2.training import DatasetError, open_dataset
from edm2.training.data.archive.catalog import open_files, read_catalog
from edm2.training.data.archive.files import CONVERTIBLE, FolderFiles, is_litter

PNG = encoded(Image.new("RGB", (4, 4)))
PETS = ("cat/1.png", "cat/2.png", "dog/1.png")
LABELS = json.dumps({"labels": [[name, k % 2] for k, name in enumerate(PETS)], "class_names": ["even", "odd"]}).encode()
BOTH = pytest.mark.parametrize("write", [write_folder, write_zip], ids=["folder", "zip"])


def files(*names: str, **others: bytes) -> dict[str, bytes]:
    return dict.fromkeys(names, PNG) | others


def seen(path: Path) -> tuple[list[str], list[int], tuple[str, ...]]:
    catalog = read_catalog(open_files(path))
    return list(catalog.names), catalog.labels.tolist(), catalog.class_names


def notes(path: Path) -> str:
    return "; ".join(read_catalog(open_files(path)).notes)


# ----------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("form", ["{}", "./{}", "/{}", "\\{}", "wrapper/{}", "./two/wrappers/{}"])
@pytest.mark.parametrize("described", [False, True])
def test_a_zip_is_read_alike_whoever_packed_it(tmp_path: Path, form: str, described: bool):
    """Backslashes, leading dots and slashes, and folders around everything; dataset.json is found there too."""
    members = files(*PETS) | ({"dataset.json": LABELS} if described else {})
    stored = {form.format(name): data for name, data in members.items()}
    if form.startswith("\\"):
        stored = {name.removeprefix("\\").replace("/", "\\"): data for name, data in stored.items()}
    path = write_zip(tmp_path / "a.zip", stored)
    assert seen(path) == (list(PETS), *(([0, 1, 0], ("even", "odd")) if described else ([0, 0, 1], ("cat", "dog"))))
    assert open_dataset(path).images([0, 1, 2]).shape == (3, 3, 4, 4)


@BOTH
def test_a_readme_beside_the_wrapper_changes_nothing(tmp_path: Path, write):
    members = {f"wrapper/{name}": data for name, data in files(*PETS, "README.txt").items()}
    assert seen(write(tmp_path / "data", members | {"README.txt": b"", "LICENSE": b""}))[2] == ("cat", "dog")
    assert seen(write(tmp_path / "two", members | {"other/1.png": PNG}))[2] == ("other", "wrapper")


def test_what_is_neither_a_file_nor_a_folder(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DatasetError, match="fifo: neither a file nor a folder"):
        open_dataset(tmp_path / "fifo")


@pytest.mark.parametrize("where", ["wrapper", "two/wrappers"])
@pytest.mark.parametrize("described", [False, True])
def test_a_folder_around_a_folder_is_not_a_class(tmp_path: Path, where: str, described: bool):
    members = files(*PETS) | ({"dataset.json": LABELS} if described else {})
    path = write_folder(tmp_path / "a", {f"{where}/{name}": data for name, data in members.items()})
    assert seen(path)[2] == (("even", "odd") if described else ("cat", "dog"))


def test_the_only_class_of_a_folder_is_a_class_but_that_of_a_zip_is_its_wrapper(tmp_path: Path):
    only = files("cat/1.png", "cat/2.png")
    assert seen(write_folder(tmp_path / "a", only))[2] == ("cat",)
    assert seen(write_zip(tmp_path / "a.zip", only))[2] == ()


@BOTH
def test_composed_and_decomposed_names_are_one(tmp_path: Path, write):
    """macOS stores decomposed ones; dataset.json and classes may be written either way."""
    other = unicodedata.normalize("NFD", "\u00e9t\u00e9")
    for form in ("NFC", "NFD"):
        label = unicodedata.normalize(form, f"{other}/1.png")
        contents = json.dumps({"labels": [[label, 0]]}).encode()
        data = write(tmp_path / f"{form}{write.__name__}", files(f"{other}/1.png") | {"dataset.json": contents})
        assert open_dataset(data).labels([0]).tolist() == [0]
    plain = write(tmp_path / f"plain{write.__name__}", files(f"{other}/1.png", "b/1.png"))
    assert seen(plain)[2] == ("b", "\u00e9t\u00e9")


# ----------------------------------------------------------------------------------------------------------------------
# What is no image of theirs


@BOTH
def test_litter_is_left_out(tmp_path: Path, write):
    litter = ["._1.png", ".hidden/1.png", "__MACOSX/1.png", "@eaDir/1.png/thumb.png", "#recycle/1.png", "Thumbs.db"]
    litter += ["$RECYCLE.BIN/S-1/1.png", "System Volume Information/1.png", "cat/@eaDir/1.png", "lost+found/1.png"]
    path = write(tmp_path / "data", files(*PETS, *litter))
    assert seen(path)[::2] == (list(PETS), ("cat", "dog"))
    assert all(any(map(is_litter, name.split("/"))) for name in litter)


def test_litter_is_not_even_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Some hidden folders may not be listed; every other folder that may not is named."""
    path = write_folder(tmp_path / "a", files(*PETS, ".Trashes/1.png"))
    scandir = os.scandir

    def refusing(folder: str | Path) -> object:
        if Path(folder).name in refused:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    refused = [".Trashes"]
    assert seen(path)[0] == list(PETS)
    refused = ["dog"]
    with pytest.raises(DatasetError, match=r"dog/: cannot be listed: Permission denied"):
        seen(path)


def test_links_in_circles_and_other_files(tmp_path: Path):
    """Each real folder once, under its own name; a FIFO would be read for ever."""
    path = write_folder(tmp_path / "a", files(*PETS))
    outside = write_folder(tmp_path / "outside", files("1.png"))
    for link, target in (("cat/up", ".."), ("l1", "."), ("l2", "."), ("self", "self"), ("a-link", "dog")):
        (path / link).symlink_to(target)
    (path / "fish").symlink_to(outside)
    os.mkfifo(path / "cat/3.png")
    (path / "cat/gone.png").symlink_to("nowhere.png")
    assert sorted(FolderFiles(path).names()) == [*PETS, "fish/1.png"]


# ----------------------------------------------------------------------------------------------------------------------
# Notes


ARRAY = npy(np.zeros((3, 4, 4), np.uint8))
LEFT_OUT = files(*PETS, "cat/3.tif", "cat/4.TIFF", "dog/2.jfif", "dog/3.heic", "dog/4.psd")


@BOTH
@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (files(*PETS, "notes.txt", "cat/notes.md"), ""),
        (
            LEFT_OUT,
            "1 .jfif, 1 .tif, 1 .tiff left out: edm2 dataset convert reads them; 1 .psd left out: save",
        ),
        (files(*PETS) | {"cat/features.npy": ARRAY}, "1 .npy among images left out, such as cat/features.npy"),
        (
            files("train/a/1.png", "val/a/1.png"),
            "called train, val, which are parts of a dataset: give {}/train or {}/val",
        ),
        (
            files("1.png", "2.png")
            | {"dataset.json": b'{"labels": [["1.png", 1], ["2.png", 4]], "class_names": ["a", "b", "c", "d", "e"]}'},
            "3 classes have no image, and will not be drawn unless asked for: a, c, d",
        ),
    ],
    ids=["nothing", "formats", "stray array", "splits", "empty classes"],
)
def test_what_may_surprise_is_said(tmp_path: Path, write, members: dict[str, bytes], expected: str):
    path = write(tmp_path / "data", members)
    assert expected.replace("{}", str(path)) in notes(path)
    assert bool(notes(path)) == bool(expected)
    assert open_dataset(path).notes == read_catalog(open_files(path)).notes


def test_arrays_that_are_listed_or_many_are_data(tmp_path: Path):
    listing = json.dumps({"labels": [["1.png", 0], ["2.npy", 0], ["3.png", 0]]}).encode()
    some = files("1.png", "3.png") | {"2.npy": ARRAY, "dataset.json": listing}
    assert seen(write_folder(tmp_path / "listed", some))[0] == ["1.png", "2.npy", "3.png"]
    assert len(seen(write_folder(tmp_path / "many", files("1.png") | {"2.npy": ARRAY, "3.npy": ARRAY}))[0]) == 3


def test_only_files_that_training_does_not_read(tmp_path: Path):
    path = write_folder(tmp_path / "a", files("1.tif", "2.tif"))
    with pytest.raises(DatasetError, match=r"a: no images in it; 2 \.tif left out: edm2 dataset convert reads them"):
        seen(path)
    assert len(read_catalog(open_files(path), CONVERTIBLE).names) == 2


def test_labels_of_files_that_are_left_out_do_no_harm(tmp_path: Path):
    listing = json.dumps({"labels": [["1.png", 0], ["2.tif", 1]]}).encode()
    path = write_folder(tmp_path / "a", files("1.png", "2.tif") | {"dataset.json": listing})
    assert seen(path)[:2] == (["1.png"], [0])
    assert read_catalog(open_files(path), CONVERTIBLE).labels.tolist() == [0, 1]


def test_without_labels_images_may_lie_anywhere(tmp_path: Path):
    path = write_folder(tmp_path / "a", files("1.png", "cat/2.png") | {"dataset.json": b"not even JSON"})
    assert read_catalog(open_files(path), labelled=False).labels.tolist() == [-1, -1]
