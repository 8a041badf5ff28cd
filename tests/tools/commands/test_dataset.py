"""`edm2 dataset`: what a user with a folder of photos does, and what can be wrong with it."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command_line import check_refusal, complaint, edm2, succeed, write_images
from PIL import Image

from edm2.datasets import conversion, pictures
from edm2.tools.commands import dataset
from edm2.training import open_dataset

USAGE, FAILURE = 2, 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images of two sizes, in three classes."""
    write_images(tmp_path / "photos", (20, 30, 3), count=6, classes=3)
    for i in range(6):
        Image.fromarray(np.full((40, 25, 3), 10 * i, np.uint8)).save(tmp_path / f"photos/class{i % 3}/tall{i}.jpg")
    return tmp_path / "photos"


def test_convert_then_info_then_use(photos: Path, tmp_path: Path):
    out = tmp_path / "new" / "photos-16.zip"
    assert succeed("dataset", "convert", photos, out, "--resolution", 16).splitlines() == [
        "               found  converted",
        ".jpg               6          6",
        ".png               6          6",
        f"12 images in {out}",
    ]
    assert open_dataset(out).shape == (3, 16, 16)
    shown = dict(line.split(":") for line in succeed("dataset", "info", out).splitlines())
    assert {subject.strip(): value.strip() for subject, value in shown.items()} == {
        "dataset": str(out),
        "images": "12",
        "size": "16x16, 3 channels, pixels",
        "stored": f"uint8, {out.stat().st_size / 1e6:.2f} MB on disk",
        "dataset.json": "yes",
        "classes": "3",
        "class0": "4",
        "class1": "4",
        "class2": "4",
    }


def test_show_draws_what_the_network_will_see_and_counts_copies(photos: Path, tmp_path: Path):
    shown = succeed("dataset", "show", "digits", "--grid", tmp_path / "digits.png")
    assert shown.endswith(f"100 images of digits in {tmp_path / 'digits.png'}\n")
    out = tmp_path / "photos-16.zip"
    succeed("dataset", "convert", photos, out, "--resolution", 16)
    assert "no near-duplicates among 12 images" in succeed("dataset", "show", out, "--grid", tmp_path / "look.png")
    copy = shutil.copytree(photos, tmp_path / "copy")
    shutil.copy(photos / "class0/tall3.jpg", copy / "class2/again.jpg")
    succeed("dataset", "convert", copy, tmp_path / "copy.zip", "--resolution", 16)
    said = succeed("dataset", "show", tmp_path / "copy.zip", "--grid", tmp_path / "look.png")
    assert "Warning: 1 of 13 images are near-duplicates of another" in said
    refused = edm2("dataset", "show", out, "--grid", tmp_path / "look.jpg")
    assert refused.code == USAGE


def test_info_says_before_training_what_it_would_stop_at(photos: Path):
    Image.fromarray(np.zeros((20, 30, 4), np.uint8)).save(photos / "class1/icon.png")
    (photos / "class2/layers.psd").write_bytes(b"8BPS")
    shown = succeed("dataset", "info", photos)
    shown = " ".join(shown.split())
    assert "sizes: 2: height 20 to 40 (median 20), width 25 to 30 (median 30)" in shown
    assert "channels: 3 (uint8) in 12, 4 (uint8) in 1" in shown
    assert f"edm2 dataset convert {photos} photos-32.zip --resolution 32" in shown
    assert "Warning: 1 .psd left out: save them as PNG to use them" in shown


def test_info_of_a_folder_and_of_the_digits(tmp_path: Path):
    folder = write_images(tmp_path / "plain", (8, 8), count=3)
    shown = succeed("dataset", "info", folder)
    assert "no\n" in shown
    assert "none\n" in shown
    assert "  0:" in succeed("dataset", "info", "digits")


def test_convert_from_hugging_face(tmp_path: Path):
    """Of a local copy: nothing here asks the hub."""
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (9, 9), (k, k, k)) for k in range(4)]
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    pets = datasets.Dataset.from_dict({"photo": images, "kind": [0, 1, 1, 0]}, features)
    datasets.DatasetDict({"test": pets}).save_to_disk(str(tmp_path / "pets"))
    out = tmp_path / "pets.zip"
    options = ("--resolution", 8, "--split", "test", "--image-column", "photo", "--label-column", "kind")
    assert succeed("dataset", "convert", f"hf:{tmp_path / 'pets'}", out, *options).endswith(f"\n4 images in {out}\n")
    assert open_dataset(out).class_names == ("cat", "dog")
    assert open_dataset(out).labels(range(4)).tolist() == [0, 1, 1, 0]


def test_resolution_is_height_times_width(photos: Path, tmp_path: Path):
    out = tmp_path / "out.zip"
    succeed("dataset", "convert", photos, out, "--resolution", "8x24", "--transform", "resize", "--max-images", 5)
    assert open_dataset(out).shape == (3, 8, 24)
    assert len(open_dataset(out)) == 5


def test_skipped_images_are_counted_and_use_up_a_number(photos: Path, tmp_path: Path):
    out = tmp_path / "out.zip"
    wide = ("--resolution", "16x28", "--transform", "center-crop-wide", "--workers", 1)
    shown = succeed("dataset", "convert", photos, out, *wide)
    assert shown.endswith(f"\n6 images in {out} (6 too small or broken, left out)\n")
    with zipfile.ZipFile(out) as archive:
        numbers = [int(Path(name).stem[3:]) for name in archive.namelist() if name != "dataset.json"]
    assert numbers == [0, 1, 4, 5, 8, 9]  # of every class the two wide ones, which come first


def test_the_names_of_the_transforms_are_those_of_the_library():
    """They stand in both places, so that help need not import Pillow."""
    assert tuple(conversion.TRANSFORMS) == dataset.TRANSFORMS
    assert pictures.EXIF == dataset.EXIF


def test_check_lists_what_is_broken_and_leaves_with_1(tmp_path: Path):
    photos = write_images(tmp_path / "photos", (8, 8), count=30)
    assert succeed("dataset", "check", photos, "--workers", 2) == f"30 images in {photos}, none broken\n"
    for k in (4, 17):
        path = photos / f"{k:03}.png"
        path.write_bytes(path.read_bytes()[:50])
    result = edm2("dataset", "check", photos)
    assert result.code == FAILURE
    assert [line.partition(": ")[0] for line in result.out.splitlines()] == [f"{photos}/{k:03}.png" for k in (4, 17)]
    assert complaint(result.err).startswith(f"Error: {photos}: 2 broken images")


# ----------------------------------------------------------------------------------------------------------------------
# Wrong


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything that can be wrong, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("fine"), (8, 8), count=4)
    Path("empty").mkdir()
    Path("there.zip").write_text("something")
    Path("folder.zip").mkdir()
    Path("no.zip").write_text("not a ZIP file")
    broken = write_images(Path("broken"), (8, 8), count=4) / "002.png"
    broken.write_bytes(broken.read_bytes()[:50])
    (write_images(Path("not-json"), (8, 8), count=4) / "dataset.json").write_text("{")
    (write_images(Path("listed"), (8, 8), count=4) / "dataset.json").write_text(json.dumps({"labels": [["x.png", 0]]}))
    write_images(Path("mixed/class"), (8, 8), count=2)
    write_images(Path("mixed"), (8, 8), count=1)
    return tmp_path


# What a user types after `edm2 dataset`, the exit code, and what the line must mention.
CASES = {
    "missing source": ("convert absent out.zip --resolution 8", FAILURE, ("absent", "no such file", "give a folder")),
    "empty source": ("convert empty out.zip --resolution 8", FAILURE, ("empty", "no images", "*.png")),
    "not a ZIP": ("convert no.zip out.zip --resolution 8", FAILURE, ("no.zip", "not a ZIP file")),
    "a single image": ("convert fine/000.png out.zip --resolution 8", FAILURE, ("000.png", "a single image", "folder")),
    "nothing large enough": (
        "convert fine out.zip --resolution 16 --transform center-crop-wide",
        FAILURE,
        ("fine", "all 4 images are too small", "16", "lower resolution"),
    ),
    "unknown transform": (
        "convert fine out.zip --resolution 8 --transform zoom",
        USAGE,
        ("'zoom'", "center-crop-dhariwal"),
    ),
    "no resolution": ("convert fine out.zip", USAGE, ("--resolution",)),
    "resolution is text": ("convert fine out.zip --resolution big", USAGE, ("--resolution", "'big'", "64x96")),
    "resolution of three": ("convert fine out.zip --resolution 8x8x3", USAGE, ("--resolution", "'8x8x3'", "64x96")),
    "resolution of nothing": ("convert fine out.zip --resolution 0x8", USAGE, ("--resolution", "'0x8'", "64x96")),
    "no square": ("convert fine out.zip --resolution 8x9", FAILURE, ("8x9", "no square", "choose resize")),
    "out is a file": ("convert fine there.zip --resolution 8", FAILURE, ("there.zip", "file", "choose another")),
    "out is a folder": ("convert fine folder.zip --resolution 8", FAILURE, ("folder.zip", "folder", "choose another")),
    "out below a file": ("convert fine there.zip/out.zip --resolution 8", FAILURE, ("out.zip", "Not a directory")),
    "out is no ZIP": ("convert fine out --resolution 8", FAILURE, ("out", "write out.zip")),
    "broken image": (
        "convert broken out.zip --resolution 8 --workers 1",
        FAILURE,
        ("broken/002.png", "cannot be read", "replace or remove them"),
    ),
    "broken image, two workers": (
        "convert broken out.zip --resolution 8 --workers 2",
        FAILURE,
        ("broken/002.png", "cannot be read", "replace or remove them"),
    ),
    "labels not JSON": ("convert not-json out.zip --resolution 8", FAILURE, ("not-json/dataset.json", "not JSON")),
    "labels of other files": ("convert listed out.zip --resolution 8", FAILURE, ("listed/dataset.json", "x.png")),
    "images beside classes": ("convert mixed out.zip --resolution 8", FAILURE, ("mixed", "000.png", "--unlabelled")),
    "no workers": ("convert fine out.zip --resolution 8 --workers 0", USAGE, ("--workers", "0", "x>=1")),
    "no images asked for": ("convert fine out.zip --resolution 8 --max-images 0", FAILURE, ("max_images=0",)),
    "split of a folder": (
        "convert fine out.zip --resolution 8 --split test",
        USAGE,
        ("--split is for Hugging Face datasets", "hf:fine"),
    ),
    "no Hugging Face dataset": (
        "convert hf:./empty out.zip --resolution 8",
        FAILURE,
        ("hf:./empty", "cannot be loaded", "check its name"),
    ),
    "check of nothing": ("check absent.zip", FAILURE, ("absent.zip", "no such file")),
    "info of nothing": ("info absent.zip", FAILURE, ("absent.zip", "no such file")),
    "info of an empty folder": ("info empty", FAILURE, ("empty", "no images")),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_in_one_line(things: Path, name: str):
    """And no result is left, whole or half; what there was stays as it was."""
    check_refusal(*CASES[name])
