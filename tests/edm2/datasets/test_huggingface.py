"""A Hugging Face dataset converts as a folder of the same images does. Nothing here asks the hub."""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm2.datasets.conversion import Resize, convert
from edm2.datasets.huggingface import open_huggingface
from edm2.training import DatasetError

datasets = pytest.importorskip("datasets")

CLASSES = ["cat", "dog", "eel"]
LABELS = [2, 0, 1, 0, 2, 2, 1]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and what `datasets` keeps lies in the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def encoded(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12 + seed, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


IMAGES = [encoded(i, "JPEG" if i % 2 else "PNG") for i in range(7)]


def pets(**columns: list) -> "datasets.Dataset":
    """Seven images in three classes; other columns as given."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    rows = {"image": [{"bytes": data, "path": None} for data in IMAGES], "label": LABELS}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


def saved(folder: Path, dataset: "datasets.Dataset | datasets.DatasetDict") -> str:
    dataset.save_to_disk(str(folder))
    return str(folder)


def parquet(folder: Path, dataset: "datasets.Dataset", split: str = "train") -> str:
    folder.mkdir(exist_ok=True)
    dataset.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return str(folder)


def labels_of(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))


@pytest.mark.parametrize("store", [saved, parquet])
def test_it_converts_as_the_same_images_in_a_folder_do(store, tmp_path: Path):
    """The same bytes: pixels, names, labels and names of classes, whatever the number of workers."""
    (tmp_path / "folder").mkdir()
    for i, data in enumerate(IMAGES):
        (tmp_path / f"folder/{i}.jpg").write_bytes(data)
    labels = [[f"{i}.jpg", label] for i, label in enumerate(LABELS)]
    (tmp_path / "folder/dataset.json").write_text(json.dumps({"labels": labels, "class_names": CLASSES}))
    convert(tmp_path / "folder", tmp_path / "expected.zip", Resize(8, 8))
    name = store(tmp_path / "pets", pets())
    for workers in (1, 2):
        out = tmp_path / f"{workers}.zip"
        convert(open_huggingface(name), out, Resize(8, 8), workers=workers)
        assert out.read_bytes() == (tmp_path / "expected.zip").read_bytes()


def parts_found_after_stop(first: str, second: str, out: Path) -> int:
    """Images that need not be made again, when a conversion of one dataset is stopped and one of another follows."""
    done: list[int] = []

    def stop(images: int, total: int) -> None:
        if images == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(open_huggingface(first), out, Resize(8, 8), report=stop)
    convert(open_huggingface(second), out, Resize(8, 8), report=lambda images, total: done.append(images))
    return done[0]


def test_stopped_and_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parts are found again by what a new look at the same rows says, but not those of other rows."""
    monkeypatch.setattr("edm2.datasets.conversion._part_size", lambda transform: 2)
    one, other = saved(tmp_path / "pets", pets()), saved(tmp_path / "others", pets().select(range(6, -1, -1)))
    assert parts_found_after_stop(one, one, tmp_path / "same.zip") == 4
    assert parts_found_after_stop(one, other, tmp_path / "changed.zip") == 0


def test_splits_are_chosen_by_name(tmp_path: Path):
    few = pets().select([0, 1])
    on_disk = saved(tmp_path / "dict", datasets.DatasetDict({"train": pets(), "test": few}))
    in_files = parquet(tmp_path / "files", pets())
    parquet(tmp_path / "files", few, "test")
    for name in (on_disk, in_files):
        assert len(open_huggingface(name)[1].names) == 7
        assert len(open_huggingface(name, split="test")[1].names) == 2


def test_labels_are_names_numbers_texts_or_left_out(tmp_path: Path):
    name = saved(tmp_path / "pets", pets(size=[5, 0, 1, 1, 1, 1, 1], color=["b", "a", "a", "b", "b", "a", "a"]))
    by_name, by_number, by_text, without = (
        open_huggingface(name, label_column=column)[1] for column in (None, "size", "color", "none")
    )
    assert (by_name.labels.tolist(), by_name.class_names) == (LABELS, tuple(CLASSES))
    assert (by_number.labels.tolist(), by_number.class_names) == ([5, 0, 1, 1, 1, 1, 1], tuple("012345"))
    assert (by_text.labels.tolist(), by_text.class_names) == ([1, 0, 0, 1, 1, 0, 0], ("a", "b"))
    assert (set(without.labels.tolist()), without.class_names) == ({-1}, ())


def test_images_may_lie_in_files_of_their_own(tmp_path: Path):
    """As those of a folder of images do, which is a Hugging Face dataset, too."""
    for i, label in enumerate(LABELS):
        path = tmp_path / "folder" / CLASSES[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGES[i])
    convert(open_huggingface(str(tmp_path / "folder")), tmp_path / "out.zip", Resize(8, 8))
    assert labels_of(tmp_path / "out.zip")["class_names"] == CLASSES
    assert sorted(label for _, label in labels_of(tmp_path / "out.zip")["labels"]) == sorted(LABELS)


# ----------------------------------------------------------------------------------------------------------------------
# Refused


def complaint(tmp_path: Path, name: str, **options: str) -> str:
    with pytest.raises(DatasetError) as failure:
        convert(open_huggingface(name, **options), tmp_path / "out.zip", Resize(8, 8))
    message = str(failure.value)
    assert message.startswith(f"hf:{name}")
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "out.zip").exists()
    return message


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'edm2[datasets]'" in complaint(tmp_path, "pets")


def test_a_dataset_that_is_neither_here_nor_to_be_had(tmp_path: Path):
    assert "cannot be loaded" in complaint(tmp_path, "nobody/nothing")
    assert "while offline" in complaint(tmp_path, "nobody/nothing")


def test_an_unknown_split(tmp_path: Path):
    assert "--split" in complaint(tmp_path, saved(tmp_path / "a", datasets.DatasetDict({"train": pets()})), split="x")
    assert "train" in complaint(tmp_path, parquet(tmp_path / "b", pets()), split="x")


def test_columns_that_are_not_there_not_fitting_or_too_many(tmp_path: Path):
    name = saved(tmp_path / "pets", pets(text=["x"] * 7))
    assert "no column y, only image, label, text" in complaint(tmp_path, name, image_column="y")
    assert "no images in column text; the columns are" in complaint(tmp_path, name, image_column="text")
    two = pets().add_column("other", IMAGES).cast_column("other", datasets.Image())
    two = two.add_column("kind", LABELS).cast_column("kind", datasets.ClassLabel(names=CLASSES))
    name = saved(tmp_path / "two", two)
    assert "columns image, other; choose one by --image-column" in complaint(tmp_path, name)
    assert "columns label, kind; choose one by --label-column" in complaint(tmp_path, name, image_column="other")
    assert "no images" in complaint(tmp_path, saved(tmp_path / "none", pets().select_columns(["label"])))
    assert "no data" in complaint(tmp_path, parquet(tmp_path / "empty", pets().select([])))


@pytest.mark.parametrize("value", [-1, None, 1_000_000, 0.5])
def test_labels_that_are_no_classes(tmp_path: Path, value):
    values = [0, 1, value, 0, 0, 0, 0] if isinstance(value, int | None) else [value] * 7
    name = saved(tmp_path / "pets", pets(kind=values))
    row = 0 if value == 0.5 else 2
    assert f"label of row {row} in column kind is {value}" in complaint(tmp_path, name, label_column="kind")


def test_an_unlabelled_split(tmp_path: Path):
    """Of test images the hub often holds no labels: -1 by convention."""
    name = saved(tmp_path / "pets", pets().remove_columns("label").add_column("label", [-1] * 7))
    dataset = datasets.load_from_disk(name).cast_column("label", datasets.ClassLabel(names=CLASSES))
    name = saved(tmp_path / "again", dataset)
    assert 'choose a --label-column of class numbers from 0 or of names, or "none"' in complaint(tmp_path, name)


@pytest.mark.parametrize("data", [b"hello", None])
def test_a_row_without_image(tmp_path: Path, data: bytes | None):
    rows = [{"bytes": encoded(0), "path": None}, None if data is None else {"bytes": data, "path": None}]
    dataset = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    assert "train/00000001: cannot be read" in complaint(tmp_path, saved(tmp_path / "pets", dataset))
