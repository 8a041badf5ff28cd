"""Conversion gives the published pixels, and the same bytes however often it was stopped and whoever did the work."""

import errno
import io
import json
import math
import os
import random
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import PIL
import pytest
from dataset_files import Stopped, npy, stop_at_rename
from golden_data import table
from PIL import Image

from edm2.datasets import conversion
from edm2.datasets.conversion import (
    TRANSFORMS,
    BrokenImages,
    CenterCrop,
    CenterCropDhariwal,
    CenterCropWide,
    Resize,
    convert,
    evenly_from_classes,
)
from edm2.datasets.pictures import PictureReader
from edm2.training import DatasetError, open_dataset
from edm2.training.data.archive.catalog import Catalog
from edm2.training.data.archive.files import Files
from edm2.training.data.archive.index import open_archive

AS_PUBLISHED = PictureReader("ignore", "drop")
"""The published tool looks neither at orientation nor at transparency."""

LEVELS = 0 if PIL.__version__ == "13.0.0" else 2
"""Pixels equal the published ones exactly; those were made by Pillow 13.0.0, and resize filters differ by
rounding: by 2 levels at most in 12.3.0."""

# ----------------------------------------------------------------------------------------------------------------------
# The published numbers


def published(golden: Path) -> dict[str, dict]:
    """Conversions of images of which this golden set has both source and result."""
    folder, found = golden / "dataset", {}
    for name, entry in table(golden, "dataset/dataset.json").items():
        if isinstance(entry, dict) and "options" in entry and (folder / f"{name}.zip").exists():
            found[name] = entry
    assert (folder / "source").is_dir(), "no source images in the golden set"
    assert found, "no converted images in the golden set"
    return found


def sources(golden: Path, name: str) -> list[Path]:
    """What the conversion of this name started from; for "flat" the file does not say which class folder."""
    folder = golden / "dataset"
    if name == "flat":
        return [path for path in sorted((folder / "source").iterdir()) if not any(map(Path.is_dir, path.iterdir()))]
    return [folder / ("dhariwal.zip" if name == "from_zip" else "source")]


def pixels(path: Path) -> dict[str, np.ndarray]:
    """The images in a ZIP by name, in their order, int16 [H, W, 3]."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name != "dataset.json"]
        return {name: np.asarray(Image.open(archive.open(name)), dtype=np.int16) for name in names}


def labels(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))


def same_pixels(ours: Path, theirs: Path) -> bool:
    a, b = pixels(ours), pixels(theirs)
    return list(a) == list(b) and all(
        a[name].shape == b[name].shape and np.abs(a[name] - b[name]).max() <= LEVELS for name in a
    )


def first_images(source: Path, count: int) -> tuple[Files, Catalog]:
    """The published tool takes the first images in order of names, whatever their classes."""
    files, catalog = open_archive(source)
    return files, replace(catalog, names=catalog.names[:count], labels=catalog.labels[:count])


def converted_alike(golden: Path, name: str, entry: dict, tmp_path: Path) -> list[Path]:
    """Our conversions, of each possible source, that have the published pixels."""
    width, height = entry["options"]["resolution"]
    transform = TRANSFORMS[entry["options"].get("transform", "resize")](height, width)
    last = max(image for image in entry["names"] if image != "dataset.json")
    max_images = int(Path(last).stem.removeprefix("img")) + 1
    alike = []
    for i, source in enumerate(sources(golden, name)):
        out = tmp_path / f"{name}-{i}.zip"
        convert(first_images(source, max_images), out, transform, reader=AS_PUBLISHED)
        if same_pixels(out, golden / "dataset" / f"{name}.zip"):
            alike.append(out)
    return alike


def test_conversion_is_the_published_one(golden: Path, tmp_path: Path):
    """Names, pixels and labels, for every transform; and what our reader makes of it."""
    for name, entry in published(golden).items():
        alike = converted_alike(golden, name, entry, tmp_path)
        assert alike, f"{name}: other pixels or names"
        for out in alike:
            with zipfile.ZipFile(out) as archive:
                assert archive.namelist() == entry["names"], name
                assert sorted({member.compress_type for member in archive.infolist()}) == entry["compression"]
            assert labels(out)["labels"] == entry["dataset_json"]["labels"], name
            assert open_dataset(out).num_classes == entry["label_dim"], name


def test_classes_keep_their_names(golden: Path, tmp_path: Path):
    """Through a conversion of a conversion as well."""
    source = golden / "dataset" / "source"
    convert(source, tmp_path / "once.zip", Resize(8, 8))
    convert(tmp_path / "once.zip", tmp_path / "twice.zip", Resize(8, 8))
    folders = sorted(path.name for path in source.iterdir())
    assert labels(tmp_path / "twice.zip")["class_names"] == folders
    assert (tmp_path / "once.zip").read_bytes() == (tmp_path / "twice.zip").read_bytes()  # nothing was left to change


# ----------------------------------------------------------------------------------------------------------------------
# Transforms


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(array)


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (255, 16), (5, 3), (1, 9)])
@pytest.mark.parametrize("transform", [CenterCrop(16, 16), CenterCropDhariwal(16, 16), Resize(16, 16), Resize(4, 9)])
def test_every_image_comes_out_at_the_size_asked_for(transform, size: tuple[int, int]):
    """Enlarged where it is smaller."""
    assert transform(photo(*size)).size == (transform.width, transform.height)


@pytest.mark.parametrize("transform", [CenterCrop(16, 16), CenterCropDhariwal(16, 16), Resize(16, 16)])
def test_an_image_of_the_right_size_is_left_alone(transform):
    assert transform(photo(16, 16)).tobytes() == photo(16, 16).tobytes()


@pytest.mark.parametrize("transform", [CenterCrop(16, 16), CenterCropDhariwal(16, 16)])
def test_crops_do_not_see_the_margins(transform):
    """Gray between noise comes out gray; the gray is 4 pixels wider on both sides, as halving moves the middle by 2."""
    image = photo(64, 300)
    image.paste((128, 128, 128), (150 - 32 - 4, 0, 150 + 32 + 4, 64))
    assert set(transform(image).tobytes()) == {128}


@pytest.mark.parametrize(
    ("height", "width", "fits"), [(24, 32, True), (23, 32, False), (31, 31, False), (150, 200, True)]
)
def test_images_too_small_for_the_wide_crop_are_refused(height: int, width: int, fits: bool):
    letter_box = CenterCropWide(24, 32)(photo(height, width))
    assert (letter_box is not None) == fits
    if fits:
        rows = np.asarray(letter_box).any(axis=(1, 2))
        assert rows.tolist() == [False] * 4 + [True] * 24 + [False] * 4


@pytest.mark.parametrize("transform", [CenterCrop, CenterCropDhariwal, CenterCropWide])
def test_shapes_that_a_transform_cannot_make(transform):
    with pytest.raises(ValueError, match="96x64"):
        transform(96, 64)


# ----------------------------------------------------------------------------------------------------------------------
# The archive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of several sizes in two classes."""
    for i in range(7):
        path = tmp_path / "photos" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(10 + i, 20 - i, seed=i).save(path)
    return tmp_path / "photos"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four parts for seven images."""
    monkeypatch.setattr(conversion, "_part_size", lambda transform: 2)


def test_transparency_can_be_dropped_and_gray_becomes_color(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "photos/a.png")
    Image.new("LA", (4, 4), (40, 7)).save(tmp_path / "photos/b.png")
    convert(tmp_path / "photos", tmp_path / "out.zip", Resize(4, 4), reader=AS_PUBLISHED)
    colors = [image[0, 0].tolist() for image in pixels(tmp_path / "out.zip").values()]
    assert colors == [[10, 20, 30], [40, 40, 40]]


def test_nothing_but_pixels_is_kept(tmp_path: Path):
    """Color profiles and the like take room, and would make bytes depend on what nobody looks at."""
    photos = tmp_path / "photos"
    photos.mkdir()
    photo(8, 8).save(photos / "a.png", icc_profile=bytes(1000), transparency=(1, 2, 3), dpi=(300, 300))
    photo(8, 8).convert("L").save(photos / "b.png", transparency=7)
    photo(8, 8).save(tmp_path / "bare.png", compress_level=0)
    convert(photos, tmp_path / "out.zip", Resize(8, 8))
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        first, second, _ = (archive.read(name) for name in archive.namelist())
    assert first == (tmp_path / "bare.png").read_bytes()
    assert len(second) == len(first)


@pytest.mark.usefixtures("small_parts")
def test_bytes_do_not_depend_on_workers_or_date(folder: Path, tmp_path: Path):
    convert(folder, tmp_path / "one.zip", Resize(8, 8), workers=1)
    convert(folder, tmp_path / "three.zip", Resize(8, 8), workers=3)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "three.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


# ----------------------------------------------------------------------------------------------------------------------
# Stopped


@pytest.mark.usefixtures("small_parts")
def test_stopped_at_any_rename_and_resumed(folder: Path, tmp_path: Path):
    """Four parts, each after its tally, the whole in their folder, and in its place: ten places to stop at."""
    convert(folder, tmp_path / "reference.zip", Resize(8, 8))
    for number in range(10):
        out = tmp_path / f"out{number}.zip"
        with pytest.MonkeyPatch.context() as monkeypatch:
            stop_at_rename(monkeypatch, number)
            with pytest.raises(Stopped):
                convert(folder, out, Resize(8, 8))
        assert not out.exists()
        done = []
        convert(folder, out, Resize(8, 8), report=lambda images, total, done=done: done.append(images))
        assert done[:1] == [min(2 * (number // 2), 7)], "finished parts were made again"
        assert out.read_bytes() == (tmp_path / "reference.zip").read_bytes()
        assert not (tmp_path / f".out{number}.zip.parts").exists()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("change", ["image", "transform", "max_images", "labels"])
def test_parts_of_another_conversion_are_not_used(folder: Path, tmp_path: Path, change: str):
    """Stopped before the end, then something is changed: as if it had never been started."""
    out = tmp_path / "out.zip"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_at_rename(monkeypatch, 8)
        with pytest.raises(Stopped):
            convert(folder, out, Resize(8, 8))
    transform, max_images = Resize(8, 8), None
    if change == "image":
        photo(9, 9, seed=99).save(folder / "class0/0.png")
    elif change == "transform":
        transform = CenterCrop(8, 8)
    elif change == "max_images":
        max_images = 3
    else:
        (folder / "dataset.json").write_text('{"labels": null}')
    convert(folder, out, transform, max_images)
    convert(folder, tmp_path / "fresh.zip", transform, max_images)
    assert out.read_bytes() == (tmp_path / "fresh.zip").read_bytes()
    assert not (tmp_path / ".out.zip.parts").exists()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_mended_image_costs_only_its_own_part(folder: Path, tmp_path: Path, workers: int):
    whole = (folder / "class1/5.png").read_bytes()
    (folder / "class1/5.png").write_bytes(whole[:60])
    with pytest.raises(BrokenImages, match=r"class1/5\.png: cannot be read.*replace or remove them"):
        convert(folder, tmp_path / "out.zip", Resize(8, 8), workers=workers)
    (folder / "class1/5.png").write_bytes(whole)
    done = []
    convert(folder, tmp_path / "out.zip", Resize(8, 8), report=lambda images, total: done.append(images))
    assert done[0] == 6


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_killed_at_ten_random_moments_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By SIGKILL, each time with another number of workers; none of those may outlive the process that started them.

    Moments are spread over the time of a whole run. A run that is done before its moment comes is a test, too: the next
    one begins anew.
    """
    monkeypatch.setattr(conversion, "_part_size", lambda transform: 32)
    images, out, transform = many_images(tmp_path / "photos", 800), tmp_path / "out.zip", CenterCropDhariwal(32, 32)
    start = time.perf_counter()
    convert(images, tmp_path / "reference.zip", transform)
    whole_run = time.perf_counter() - start
    reference, moments, killed, kept = (tmp_path / "reference.zip").read_bytes(), random.Random(0), 0, []
    for run in range(100):
        child, workers_gone = start_process(lambda workers=1 + run % 3: convert(images, out, transform, None, workers))
        time.sleep(moments.uniform(0, whole_run))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        assert workers_gone.read() == b""
        kept.append(len(list((tmp_path / ".out.zip.parts").glob("*.zip"))))
        if out.exists() or killed == 10:
            with suppress(FileExistsError):  # that call removes what was left when this was killed at the very end
                convert(images, out, transform, workers=2)
            assert out.read_bytes() == reference
            assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
            out.unlink()
        if killed == 10:
            break
    assert killed == 10
    assert len(set(kept)) > 3, f"numbers of parts kept: {kept}; the moments were not spread over the run"


def many_images(folder: Path, count: int) -> Path:
    """Sixteen different ones under many names."""
    folder.mkdir()
    for i in range(count):
        path = folder / f"{i:04}.jpg"
        photo(160, 200, seed=i).save(path) if i < 16 else os.link(folder / f"{i % 16:04}.jpg", path)
    return folder


def start_process(work: Callable[[], object]) -> tuple[int, BinaryIO]:
    """Do it in a forked process; the file ends when that one and all its workers are gone."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.close(writing)
    return child, open(reading, "rb")


class SmallDisk:
    """Takes only so many bytes, all files together."""

    def __init__(self, room: float) -> None:
        self.room = room
        self.written = 0

    def open(self, path: Path, mode: str) -> io.FileIO:
        disk = self

        class Limited(io.FileIO):
            def write(self, data: bytes) -> int:
                disk.written += len(data)
                if disk.written > disk.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(data)

        return Limited(path, mode)


@pytest.mark.usefixtures("small_parts")
def test_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Wherever it happens: one line that says so, finished parts are kept, and afterwards only the rest is made."""
    disk = SmallDisk(math.inf)
    monkeypatch.setattr(zipfile, "io", SimpleNamespace(**{**vars(io), "open": disk.open}))
    written = {}  # bytes by the number of images done
    record = lambda images, total: written.setdefault(images, disk.written)  # noqa: E731
    convert(folder, tmp_path / "reference.zip", Resize(8, 8), report=record)
    needed = disk.written
    for step in range(19):
        out, disk.written, disk.room = tmp_path / f"{step}.zip", 0, needed * step / 19
        fits = max(images for images, size in written.items() if size <= disk.room)
        with pytest.raises(OSError, match=r"\d+\.zip: cannot be written: No space left on device; .*finished parts"):
            convert(folder, out, Resize(8, 8))
        assert not out.exists()
        assert not list(tmp_path.rglob("*.tmp"))
        disk.room = math.inf
        done = []
        convert(folder, out, Resize(8, 8), report=lambda images, total, done=done: done.append(images))
        assert done[0] == fits, "more was lost than the part at work"
        assert out.read_bytes() == (tmp_path / "reference.zip").read_bytes()


# ----------------------------------------------------------------------------------------------------------------------
# Refused


def test_nothing_large_enough(folder: Path, tmp_path: Path):
    with pytest.raises(DatasetError, match=r"photos: all 7 images are too small for CenterCropWide.*lower resolution"):
        convert(folder, tmp_path / "out.zip", CenterCropWide(48, 64))
    with pytest.raises(ValueError, match="max_images=0 must be at least 1"):
        convert(folder, tmp_path / "out.zip", Resize(8, 8), max_images=0)
    assert list(tmp_path.iterdir()) == [folder]


def test_arrays_are_not_images(folder: Path, tmp_path: Path):
    """A dataset of arrays is one already; a single one among images is another program's."""
    np.save(folder / "class0/x.npy", np.zeros((3, 8, 8), dtype=np.uint8))
    convert(folder, tmp_path / "out.zip", Resize(8, 8))
    assert len(open_dataset(tmp_path / "out.zip")) == 7
    for path in folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"class0/x\.npy: an array.*can be used as it is"):
        convert(folder, tmp_path / "other.zip", Resize(8, 8))


# ----------------------------------------------------------------------------------------------------------------------
# Pictures as they come


@pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000), (30_000, 3)])
def test_thin_images_take_little_memory(size: tuple[int, int]):
    """Enlarged whole, the first would have ten billion pixels."""
    assert CenterCropDhariwal(512, 512)(Image.new("RGB", size, "red")).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(37, 400), (401, 36), (3, 90)])
def test_cropping_first_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]):
    """Up to rounding. Neither dark nor bright: Pillow clips after each of two passes, in an order of its own."""
    image, transform = photo(*size).point(lambda level: 64 + level // 2), CenterCropDhariwal(64, 64)
    whole = np.asarray(transform(image), dtype=int)
    monkeypatch.setattr(conversion, "LARGEST", 0)
    assert np.abs(np.asarray(transform(image), dtype=int) - whole).max() <= 2


@pytest.mark.parametrize(
    ("labels", "count", "taken"),
    [
        ([0, 0, 0, 0, 1, 1, 2], 5, [0, 1, 4, 5, 6]),
        ([0, 0, 0, 0, 1, 1, 2], 2, [0, 4]),
        ([2, 2, 0, 1, 0, 2], 4, [0, 2, 3, 4]),
        ([0, 0, 1], None, [0, 1, 2]),
        ([-1, -1, -1], 2, [0, 1]),
    ],
)
def test_some_images_are_taken_evenly_from_the_classes(labels: list[int], count: int | None, taken: list[int]):
    assert evenly_from_classes(np.array(labels), count).tolist() == taken


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Good and bad files of many kinds, some in folders and some beside."""
    folder = tmp_path / "messy"
    (folder / "icons").mkdir(parents=True)
    photo(40, 30).save(folder / "photo.JPG")
    photo(40, 30).save(folder / "scan.tif", save_all=True, append_images=[photo(40, 30)])
    photo(4, 4).save(folder / "small.gif")
    Image.new("I;16", (16, 16), 40_000).save(folder / "icons/deep.png")
    Image.new("RGBA", (16, 16)).save(folder / "icons/icon.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(40, 30).save(folder / "lying.jfif", format="JPEG", exif=exif)
    (folder / "cut.png").write_bytes((folder / "photo.JPG").read_bytes()[:80])
    (folder / "icons/none.webp").write_bytes(b"nothing")
    (folder / "layers.psd").write_bytes(b"8BPS")
    (folder / "icons/features.npy").write_bytes(npy(np.zeros(3)))
    for name in (".DS_Store", "icons/.DS_Store", "._photo.JPG", "Thumbs.db", "@eaDir/a.jpg", "@eaDir/b.jpg", ".git/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"litter")
    return folder


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("workers", "packed"), [(1, False), (2, False), (1, True)])
def test_what_became_of_every_file(messy: Path, tmp_path: Path, workers: int, packed: bool):
    """All broken ones are named; then, without them, the parts that are there are used, and their counts too."""
    out = tmp_path / "out.zip"
    messy = Path(shutil.make_archive(str(tmp_path / "messy"), "zip", tmp_path, "messy")) if packed else messy
    with pytest.raises(BrokenImages, match=r"messy(\.zip)?: 2 of 8 images cannot be read.*--skip-broken") as failure:
        convert(messy, out, CenterCrop(16, 16), workers=workers, labelled=False)
    assert [line.partition(": ")[0] for line in failure.value.lines] == [f"{messy}/cut.png", f"{messy}/icons/none.webp"]
    assert not out.exists()
    done = []
    report = lambda images, total: done.append(images)  # noqa: E731
    result = convert(messy, out, CenterCrop(16, 16), workers=workers, report=report, labelled=False, skip_broken=True)
    tally = result.tally
    assert done == [8]
    assert (result.images, result.skipped) == (6, 2)
    assert tally.pictures == dict.fromkeys(("turned", "composited", "further_pages", "rounded"), 1)
    assert "1 gray of more than 8 bits: rounded to 8" in tally.remarks("white")
    assert [" ".join(line.split()) for line in tally.table()] == [
        "found converted enlarged broken not read litter",
        ".*/ 1 0 0 0 0 1",
        ".DS_Store 2 0 0 0 0 2",
        "._* 1 0 0 0 0 1",
        ".gif 1 1 1 0 0 0",
        ".jfif 1 1 0 0 0 0",
        ".jpg 1 1 0 0 0 0",
        ".npy 1 0 0 0 1 0",
        ".png 3 2 0 1 0 0",
        ".psd 1 0 0 0 1 0",
        ".tif 1 1 0 0 0 0",
        ".webp 1 0 0 1 0 0",
        "@eaDir/ 1 0 0 0 0 1",
        "Thumbs.db 1 0 0 0 0 1",
    ]
    assert result.notes == (
        "1 .npy among images left out, such as icons/features.npy",
        "1 .psd left out: save them as PNG to use them",
    )
    assert open_dataset(out).num_classes == 0
    assert labels(out)["labels"] is None


def test_labels_survive_images_that_are_left_out(tmp_path: Path):
    for i in range(6):
        path = tmp_path / f"photos/class{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(8, 8).save(path)
    (tmp_path / "photos/class0/2.png").write_bytes(b"")
    convert(tmp_path / "photos", tmp_path / "out.zip", Resize(8, 8), 5, skip_broken=True)
    assert [label for _, label in labels(tmp_path / "out.zip")["labels"]] == [0, 0, 1, 1]
