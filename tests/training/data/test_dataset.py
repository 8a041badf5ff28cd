"""Datasets return what is stored, in the right order, with the right labels; unusable files are named in one line."""

import io
import json
import os
import pickle
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import encoded, npy, write_folder, write_zip
from golden_data import arrays, table
from PIL import Image

from edm2.training.data.dataset import (
    ArchiveDataset,
    ArrayDataset,
    Dataset,
    DatasetError,
    Subset,
    open_dataset,
    pixel_statistics,
    split_holdout,
)

RNG = np.random.default_rng(0)


def png(size: tuple[int, int] = (6, 4), mode: str = "RGB") -> bytes:
    """A random image; size is (width, height)."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = RNG.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return encoded(Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels, mode))


def labels_json(*labels: object, **others: object) -> bytes:
    return json.dumps({"labels": labels, **others}).encode()


@pytest.fixture(params=[write_folder, write_zip], ids=["folder", "zip"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Writes files as a dataset: in a folder, then in a ZIP. One must be as good as the other."""
    name = {write_folder: "data", write_zip: "data.zip"}[request.param]
    return lambda files: request.param(tmp_path / name, files)


def everything(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    return dataset.images(range(len(dataset))), dataset.labels(range(len(dataset)))


# ----------------------------------------------------------------------------------------------------------------------
# What the paper's tools wrote


def test_archives_read_back_as_the_published_reader_reads_them(golden):
    """Pixels, names and labels, for every archive of the set; exact, as PNG and NPY lose nothing."""
    numbers, archives = arrays(golden, "dataset/dataset.safetensors"), table(golden, "dataset/dataset.json")
    present = [name for name in archives if (golden / "dataset" / f"{name}.zip").exists()]
    for name in present:
        dataset = open_dataset(golden / "dataset" / f"{name}.zip")
        images, labels = everything(dataset)
        moments = f"{name}/raw_moments" in numbers
        assert torch.equal(images, numbers[f"{name}/raw_moments" if moments else f"{name}/images"]), name
        assert dataset.kind == ("moments" if moments else "pixels")
        assert dataset.shape == images.shape[1:]
        if f"{name}/onehot" in numbers:
            onehot = numbers[f"{name}/onehot"]
            assert dataset.num_classes == onehot.shape[1], name
            assert torch.equal(labels, onehot.argmax(1)), name
        else:
            assert archives[name]["dataset_json"]["labels"] is None
            assert dataset.num_classes == 0
            assert (labels == -1).all()
    assert present, "no archive in the golden set"


# ----------------------------------------------------------------------------------------------------------------------
# People's own images


def test_class_folders_are_ranked_in_plain_sort_order(write):
    dataset = open_dataset(write({name: png() for name in ("b/1.png", "a/x/9.png", "a/2.png", "D/z.png")}))
    assert dataset.class_names == ("D", "a", "b")
    assert dataset.labels(range(4)).tolist() == [0, 1, 1, 2]  # D/z, a/2, a/x/9, b/1


def test_class_names_come_from_the_json_or_are_numbers(write):
    files = {"1.png": png(), "2.png": png()}
    pairs = [["1.png", 2], ["2.png", 0]]
    assert open_dataset(write(files | {"dataset.json": labels_json(*pairs)})).class_names == ("0", "1", "2")
    named = labels_json(*pairs, class_names=["cat", "dog", "eel", "fox"])
    dataset = open_dataset(write(files | {"dataset.json": named}))
    assert dataset.class_names == ("cat", "dog", "eel", "fox")
    assert dataset.labels([0, 1]).tolist() == [2, 0]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_pixels_keep_their_channels(write, mode, channels):
    data = png(mode=mode)
    dataset = open_dataset(write({"1.png": data}))
    stored = np.asarray(Image.open(io.BytesIO(data))).reshape(4, 6, channels)
    assert dataset.shape == (channels, 4, 6)
    assert np.array_equal(dataset.images([0])[0], stored.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["P", "1"])
def test_other_modes_become_rgb(write, mode):
    image = Image.open(io.BytesIO(png())).convert(mode)
    dataset = open_dataset(write({"1.png": encoded(image)}))
    assert np.array_equal(dataset.images([0])[0].permute(1, 2, 0), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP"])
def test_common_image_files_are_accepted(write, kind):
    data = encoded(Image.open(io.BytesIO(png((16, 8)))), kind)
    dataset = open_dataset(write({f"1.{kind.lower()}": data, f"2.{kind}": data}))  # suffixes in either case
    assert len(dataset) == 2
    assert np.array_equal(dataset.images([1])[0].permute(1, 2, 0), np.asarray(Image.open(io.BytesIO(data))))


def test_npy_holds_pixels_or_moments(write):
    """Moments keep their precision: what draws latents from them decides where to calculate in float32."""
    pixels = RNG.integers(0, 256, (4, 3, 5), dtype=np.uint8)
    moments = RNG.random((8, 3, 5), dtype=np.float32)
    half = moments.astype(np.float16)
    for array, kind, levels in ((pixels, "pixels", 256), (moments, "moments", 0), (half, "moments", 0)):
        dataset = open_dataset(write({"1.npy": npy(array)}))
        assert (dataset.kind, dataset.levels, dataset.shape) == (kind, levels, array.shape)
        image = dataset.images([0])[0].numpy()
        assert image.dtype == array.dtype
        assert np.array_equal(image, array)


STATS = {"mean": [120.5, 0, 3], "std": [60.25, 1, 2.5], "sigma_data": 0.5}


def test_measured_statistics_of_pixels_come_with_the_dataset(write):
    dataset = open_dataset(write(ONE | {"dataset.json": json.dumps({"labels": None, "pixels": STATS}).encode()}))
    assert dataset.pixel_stats == STATS
    assert Subset(dataset, [0]).pixel_stats == STATS
    assert open_dataset(write(ONE | {"dataset.json": json.dumps({"labels": None}).encode()})).pixel_stats is None


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [1, 2]},
        {"mean": 1},
        {"mean": [1, 2, None]},
        {"mean": [1, 2, float("nan")]},
        {"std": [1, 2, 0]},
        {"std": [1, 2, True]},
        {"std": [1, 2, "3"]},
        {"sigma_data": None},
        {"sigma_data": -0.5},
        {"sigma_data": 10**400},
    ],
    ids=str,
)
def test_malformed_statistics_are_named(write, change):
    stats = json.dumps({"labels": None, "pixels": STATS | change}).encode()
    assert_unusable(write(ONE | {"dataset.json": stats}), r'dataset\.json: "pixels" must be .* edm2 dataset stats')


def test_opening_reads_one_image_only(write):
    """A million files must open at once; so a damaged file is found when it is read, not before."""
    dataset = open_dataset(write({"1.png": png(), "2.png": b"damaged"}))
    dataset.images([0])
    with pytest.raises(DatasetError, match=r"2\.png"):
        dataset.images([0, 1])


def test_an_archive_is_read_alike_in_threads_forks_and_copies(write):
    """An open ZIP has one file position: shared between processes or threads it would return mixed-up files."""
    dataset = open_dataset(write({f"{k}.png": png((64, 64)) for k in range(8)}))  # longer than a buffer of the file
    expected, _ = everything(dataset)
    assert torch.equal(everything(pickle.loads(pickle.dumps(dataset)))[0], expected)

    results = []
    threads = [threading.Thread(target=lambda: results.append(everything(dataset)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(images, expected) for images in results)

    child = os.fork()
    if child == 0:
        os._exit(0 if reads_well(dataset, expected) else 1)
    assert reads_well(dataset, expected)
    assert os.waitpid(child, 0)[1] == 0


def reads_well(dataset: Dataset, expected: torch.Tensor) -> bool:
    """Read long enough to meet the other process."""
    try:
        return all(np.array_equal(dataset.images([k % 8])[0], expected[k % 8]) for k in range(400))
    except DatasetError:
        return False


# ----------------------------------------------------------------------------------------------------------------------
# What cannot be used


def sixteen_bit_png() -> bytes:
    """16 bits per colour: Pillow can read it (silently dropping half of the bits), but not write it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")


def moments(**changes: float) -> np.ndarray:
    array = np.ones((8, 2, 2), dtype=np.float32)
    for channel, value in changes.items():
        array[int(channel[1:]), 0, 0] = value
    return array


ONE = {"1.png": png()}
TWO = ONE | {"2.png": png()}

UNUSABLE = {
    "empty": ({}, "no images"),
    "no images": ({"notes.txt": b"hello"}, "no images"),
    "not JSON": (ONE | {"dataset.json": b'{"labels": '}, "not JSON"),
    "not text": (ONE | {"dataset.json": b"\xff\xfe\xff"}, "not JSON"),
    "deeply nested": (ONE | {"dataset.json": b"[" * 100_000}, "not JSON"),
    "a list": (ONE | {"dataset.json": b"[]"}, "must be of the form"),
    "no labels key": (ONE | {"dataset.json": b"{}"}, "must be of the form"),
    "labels as dict": (ONE | {"dataset.json": b'{"labels": {"1.png": 0}}'}, "must be of the form"),
    "no pairs": (ONE | {"dataset.json": labels_json("1.png")}, "pairs"),
    "negative label": (ONE | {"dataset.json": labels_json(["1.png", -1])}, r"label of 1\.png is -1"),
    "fractional label": (ONE | {"dataset.json": labels_json(["1.png", 1.5])}, r"label of 1\.png is 1\.5"),
    "boolean label": (ONE | {"dataset.json": labels_json(["1.png", True])}, r"label of 1\.png is True"),
    "text label": (ONE | {"dataset.json": labels_json(["1.png", "cat"])}, r"label of 1\.png is 'cat'"),
    "vector label": (ONE | {"dataset.json": labels_json(["1.png", [0, 1]])}, r"label of 1\.png is \[0, 1\]"),
    "huge label": (ONE | {"dataset.json": labels_json(["1.png", 10**30])}, r"label of 1\.png is 1000"),
    "two labels": (ONE | {"dataset.json": labels_json(["1.png", 0], ["1.png", 1])}, r"1\.png has two labels, 0 and 1"),
    "absent files": (
        ONE | {"dataset.json": labels_json(["1.png", 0], ["7.png", 0], ["8.png", 0])},
        r"names 2 files .* first is 7\.png",
    ),
    "unlisted files": (TWO | {"dataset.json": labels_json(["1.png", 0])}, r"no label for 1 files, the first is 2\.png"),
    "class_names no list": (ONE | {"dataset.json": labels_json(["1.png", 0], class_names="cat")}, "list of strings"),
    "too few class_names": (
        ONE | {"dataset.json": labels_json(["1.png", 2], class_names=["a", "b"])},
        "labels go up to 2",
    ),
    "images beside folders": (ONE | {"cat/2.png": png()}, r"1\.png lies beside class folders such as cat"),
    "no image": ({"1.png": b"hello"}, r"1\.png: .* not an image"),
    "truncated image": ({"1.png": png((64, 64))[:4000]}, r"1\.png: .* truncated"),
    "truncated header": ({"1.png": png()[:20]}, r"1\.png: cannot be read"),
    "16-bit gray": ({"1.png": encoded(Image.new("I;16", (2, 2)))}, r"1\.png: .* more than 8 bits"),
    "16-bit colour": ({"1.png": sixteen_bit_png()}, r"1\.png: .* more than 8 bits"),
    "another size": (ONE | {"2.png": png((4, 6))}, r"2\.png: 6x4 pixels with 3 .* 1\.png has 4x6 .*makes all alike"),
    "another channel count": (ONE | {"2.png": png(mode="L")}, r"2\.png: 4x6 pixels with 1 channel, .* with 3 channels"),
    "moments among pixels": (ONE | {"2.npy": npy(moments())}, r"2\.npy: 2x2 float32 moments with 8 .* 4x6 pixels"),
    "moments like pixels": (
        {"1.npy": npy(np.ones((4, 2, 2), np.uint8)), "2.npy": npy(np.ones((4, 2, 2), np.float32))},
        r"2\.npy: 2x2 float32 moments with 4 channels, .* 2x2 pixels",
    ),
    "two precisions": (
        {"1.npy": npy(moments()), "2.npy": npy(moments().astype(np.float16))},
        r"2\.npy: 2x2 float16 moments with 8 channels, .* 2x2 float32 moments",
    ),
    "no array": ({"1.npy": b"hello"}, r"1\.npy: cannot be read"),
    "truncated array": ({"1.npy": npy(moments())[:-4]}, r"1\.npy: cannot be read"),
    "array of objects": ({"1.npy": npy(np.array([[[open]]]))}, r"1\.npy: .* object array"),
    "double precision": ({"1.npy": npy(moments().astype(np.float64))}, r"1\.npy: .* float64 array"),
    "big-endian": ({"1.npy": npy(moments().astype(">f4"))}, r"1\.npy: .* >f4 array"),
    "two dimensions": ({"1.npy": npy(np.zeros((4, 4), np.uint8))}, r"1\.npy: .* shape \[4, 4\]"),
    "channels last": ({"1.npy": npy(np.zeros((32, 32, 3), np.uint8))}, r"1\.npy: .* shape \[32, 32, 3\]"),
    "no pixels": ({"1.npy": npy(np.zeros((3, 0, 4), np.uint8))}, r"1\.npy: .* shape \[3, 0, 4\]"),
    "odd moments": ({"1.npy": npy(moments()[:7])}, r"1\.npy: .* shape \[7, 2, 2\]"),
    "NaN": ({"1.npy": npy(moments(c1=np.nan))}, r"1\.npy: .* NaN"),
    "infinity": ({"1.npy": npy(moments(c6=-np.inf))}, r"1\.npy: .* NaN or infinity"),
    "log-variance": ({"1.npy": npy(moments(c6=-1))}, r"1\.npy: .* negative standard deviations"),
    "NaN in half precision": ({"1.npy": npy(moments(c1=np.nan).astype(np.float16))}, r"1\.npy: .* NaN"),
    "log-variance in half precision": ({"1.npy": npy(moments(c6=-1).astype(np.float16))}, r"1\.npy: .* negative"),
}


def assert_unusable(path: Path, reason: str) -> None:
    """Opening and reading fails with one line that begins with the path and gives the reason."""
    with pytest.raises(DatasetError, match=reason) as failure:
        everything(open_dataset(path))
    message = str(failure.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("files", "reason"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_data_is_named_in_one_line(write, files, reason):
    assert_unusable(write(files), reason)


def test_a_missing_path_is_named(tmp_path):
    assert_unusable(tmp_path / "nothing", "no such file or folder")


def test_what_is_no_zip_is_named(tmp_path):
    whole = write_zip(tmp_path / "whole.zip", TWO).read_bytes()
    for name, data in {"text": b"hello", "empty": b"", "cut": whole[:-30], "image": png()}.items():
        path = tmp_path / f"{name}.zip"
        path.write_bytes(data)
        assert_unusable(path, "not a ZIP file, or cut short")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_a_zip_is_named(tmp_path):
    path = write_zip(tmp_path / "data.zip", ONE)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("1.png", png())
    assert_unusable(path, r"1 names more than once, the first is 1\.png")


def test_a_damaged_zip_member_is_named(tmp_path):
    """One flipped bit inside: the checksum tells."""
    path = write_zip(tmp_path / "data.zip", ONE)
    data = bytearray(path.read_bytes())
    data[data.index(ONE["1.png"]) + 60] ^= 1
    path.write_bytes(data)
    assert_unusable(path, r"1\.png: cannot be read: Bad CRC-32")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_named(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "data.zip", "w", method) as file:
        file.writestr("1.png", png())
    assert_unusable(tmp_path / "data.zip", r"1\.png: cannot be read: .*stored or deflated")


def test_encryption_is_named(tmp_path):
    """A flag in the directory says so; the contents here are plain."""
    path = write_zip(tmp_path / "data.zip", ONE)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert_unusable(path, r"1\.png: cannot be read: encrypted")


def test_a_member_that_unpacks_to_more_than_it_says_is_named(tmp_path):
    """And is not unpacked: this one would take 100 MB."""
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("1.png", bytes(100_000_000))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, 1000)
    path.write_bytes(data)
    assert_unusable(path, r"1\.png: cannot be read: Bad CRC-32")


@pytest.mark.filterwarnings("ignore")
def test_a_zip_damaged_anywhere_reads_right_or_is_named(tmp_path):
    """Whatever bit is flipped or byte lost: the same images, those that are left, or one line."""
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        for k in range(4):
            file.writestr(f"{k}.png", png(), zipfile.ZIP_DEFLATED if k % 2 else zipfile.ZIP_STORED)
        file.writestr("dataset.json", labels_json(*([f"{k}.png", k] for k in range(4))))
    whole, intact, outcomes = path.read_bytes(), images_with_labels(path), []
    for round_ in range(400):
        damaged = bytearray(whole)
        place = int(RNG.integers(len(whole)))
        if round_ % 4:
            damaged[place] ^= 1 << int(RNG.integers(8))
        else:
            del damaged[place : place + int(RNG.integers(1, 60))]
        path.write_bytes(damaged)
        outcomes.append(images_with_labels(path))
        # Where the name dataset.json was hit there are no labels any more.
        assert outcomes[-1] <= intact | {(image, -1) for image, _ in intact}
    assert outcomes.count(set()) > 200
    assert outcomes.count(intact) > 10  # dates and the like decide nothing


def images_with_labels(path: Path) -> set[tuple[bytes, int]]:
    """All of a dataset; nothing if it is refused in one line."""
    try:
        images, labels = everything(open_dataset(path))
    except DatasetError as error:
        line = str(error)
    else:
        return {(image.numpy().tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)}
    assert line.startswith(str(path))
    assert len(line.splitlines()) == 1
    return set()


@pytest.mark.parametrize("compress_level", [0, 6])
def test_a_png_with_one_wrong_bit_reads_right_or_is_named(tmp_path, compress_level):
    """Anywhere: in a folder too, where no checksum of an archive tells, PNG's own do."""
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(
        buffer, "PNG", compress_level=compress_level
    )
    path = write_folder(tmp_path / "data", {"1.png": buffer.getvalue()})
    intact, outcomes = images_with_labels(path), []
    for place in range(len(buffer.getvalue())):
        damaged = bytearray(buffer.getvalue())
        damaged[place] ^= 1 << int(RNG.integers(8))
        (path / "1.png").write_bytes(damaged)
        outcomes.append(images_with_labels(path))
    assert all(outcome in (intact, set()) for outcome in outcomes)
    assert outcomes.count(set()) > 0.9 * len(outcomes)


def test_a_member_that_claims_to_be_huge_is_named_before_it_is_unpacked(tmp_path):
    path = write_zip(tmp_path / "data.zip", ONE)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, 0xF0000000)
    path.write_bytes(data)
    assert_unusable(path, r"1\.png: cannot be read: 4,026,531,840 bytes are more than any image has")


def test_a_huge_file_is_named_before_it_is_read(tmp_path):
    """A file with a hole takes no space on the disk, but all of it in memory."""
    path = write_folder(tmp_path / "data", {"1.png": b""})
    os.truncate(path / "1.png", 1 << 40)
    assert_unusable(path, r"1\.png: cannot be read: 1,099,511,627,776 bytes are more than any image has")


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "EPS"), (b"P6 1 1 255\n\0\0\0", "PPM")],
)
def test_formats_that_nobody_trains_on_are_not_even_looked_at(write, start, kind):
    """Pillow knows an image by its contents; for PostScript it would start Ghostscript with a stranger's program."""
    Image.init()
    assert kind in Image.OPEN
    assert_unusable(write({"1.png": start}), r"1\.png: cannot be read: not an image")


def test_a_png_that_would_fill_the_memory_is_named(write):
    """A hundred bytes that announce 60,000 x 60,000 pixels."""
    data = bytearray(png())
    struct.pack_into(">II", data, 16, 60_000, 60_000)
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    assert_unusable(
        write({"1.png": bytes(data)}), r"1\.png: cannot be read: Image size \(3600000000 pixels\) exceeds limit"
    )


def test_odd_file_names_are_shown_in_print(write):
    """Line breaks, terminal escapes and bytes that are no text can stand in a name, and must not reach the screen."""
    path = write({"a\n\x1b[31m\u2028b.png": b"damaged"})
    assert_unusable(path, re.escape(r"/a\n\x1b[31m\u2028b.png: cannot be read"))


def test_a_file_that_vanished_is_named(tmp_path):
    dataset = open_dataset(write_folder(tmp_path / "data", TWO))
    (tmp_path / "data" / "2.png").unlink()
    with pytest.raises(DatasetError, match=r"2\.png: cannot be read"):
        dataset.images([1])


# ----------------------------------------------------------------------------------------------------------------------
# Digits, subsets, statistics


def test_digits():
    dataset = open_dataset("digits")
    images, labels = everything(dataset)
    assert (len(dataset), dataset.shape, dataset.kind, dataset.levels) == (1797, (1, 8, 8), "pixels", 17)
    assert dataset.class_names == tuple("0123456789")
    assert images.dtype == torch.uint8
    assert sorted(images.unique().tolist()) == list(range(17))
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn documents


def test_digits_is_a_word_not_a_path(tmp_path, monkeypatch):
    """A folder of that name is reached as ./digits or as a Path."""
    monkeypatch.chdir(tmp_path)
    write_folder(Path("digits"), TWO)
    assert len(open_dataset("digits")) == 1797
    assert len(open_dataset("./digits")) == len(open_dataset(Path("digits"))) == 2


def test_a_subset_is_a_dataset_of_its_own():
    whole = open_dataset("digits")
    part = Subset(Subset(whole, [5, 7, 11]), torch.tensor([2, 0]))
    assert len(part) == 2
    assert torch.equal(part.images([0, 1, 0]), whole.images([11, 5, 11]))
    assert torch.equal(part.labels(np.array([1])), whole.labels([5]))
    described = [(d.name, d.shape, d.kind, d.levels, d.class_names, d.num_classes) for d in (part, whole)]
    assert described[0] == described[1]


def numbered(length: int) -> ArrayDataset:
    """Image k is the number k."""
    return ArrayDataset(torch.arange(length, dtype=torch.uint8).view(-1, 1, 1, 1))


@pytest.mark.parametrize("count", [1, 5, 99])
def test_holdout_and_training_images_are_disjoint_and_complete(count):
    train, holdout = split_holdout(numbered(100), count, seed=3)
    seen, kept = (everything(part)[0].flatten().tolist() for part in (train, holdout))
    assert len(kept) == count
    assert sorted(seen + kept) == list(range(100))


def test_holdout_is_fixed_by_the_seed():
    choices = [everything(split_holdout(numbered(100), 10, seed)[1])[0] for seed in (1, 1, 2)]
    assert torch.equal(choices[0], choices[1])
    assert not torch.equal(choices[0], choices[2])


def test_a_holdout_of_nothing_leaves_the_dataset_alone_and_any_must_leave_something():
    dataset = numbered(3)
    assert split_holdout(dataset, 0, seed=0) == (dataset, None)
    for count in (-1, 3, 4):
        with pytest.raises(ValueError, match=f"cannot hold out {count} of the 3 images"):
            split_holdout(dataset, count, seed=0)


def test_pixel_statistics_are_those_of_every_pixel():
    images = torch.from_numpy(RNG.integers(0, 256, (150, 3, 5, 4), dtype=np.uint8))
    images[:, 1] //= 4
    mean, std = pixel_statistics(ArrayDataset(images))
    assert mean == pytest.approx(images.double().mean((0, 2, 3)).tolist(), rel=1e-13)  # rounding of float64 sums
    assert std == pytest.approx(images.double().std((0, 2, 3), correction=0).tolist(), rel=1e-13)


def test_pixel_statistics_of_a_large_dataset_use_evenly_spaced_images():
    dataset = numbered(100)
    assert pixel_statistics(dataset, max_images=4) == pixel_statistics(Subset(dataset, [0, 25, 50, 75]))


def test_moments_have_no_pixel_statistics():
    with pytest.raises(ValueError, match="moments, not pixels"):
        pixel_statistics(ArrayDataset(torch.ones(2, 8, 4, 4)))


def test_files_are_left_alone(write):
    path = write(TWO)
    before = sorted(path.parent.rglob("*"))
    assert isinstance(open_dataset(path), ArchiveDataset)
    assert sorted(path.parent.rglob("*")) == before
