"""Statistics of datasets: what they are, that nothing else than the images decides them, and how they are stored."""

import json
import resource
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edm2.datasets import description
from edm2.datasets.description import check_writable, open_to_measure, store_statistics, write_entry
from edm2.datasets.measuring import Statistics, measure
from edm2.training import ArrayDataset, DatasetError, open_dataset
from edm2.training.data.dataset import Subset, pixel_statistics

# ----------------------------------------------------------------------------------------------------------------------
# What they are


def random_pixels(count: int = 50, levels: int = 256) -> Tensor:
    """Three channels that differ, two of them together."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, levels, (count, 3, 6, 7), generator=random)
    return torch.stack([pixels[:, 0], pixels[:, 1] // 2, (pixels[:, 1] + pixels[:, 2]) // 2], dim=1).to(torch.uint8)


def random_moments(count: int = 50) -> Tensor:
    """Of latents far from 0."""
    random = torch.Generator().manual_seed(0)
    mean, std = torch.randn(2, count, 4, 5, 6, generator=random)
    return torch.cat([5 + 3 * mean, std.abs()], dim=1)


@pytest.mark.parametrize("levels", [256, 17])
def test_pixels(levels: int):
    """Mean and std in levels, sigma_data where black is -1 and white 1; to rounding in float64."""
    pixels = random_pixels(levels=levels)
    measured = measure(ArrayDataset(pixels, levels=levels))
    mean, std = pixel_statistics(ArrayDataset(pixels, levels=levels))
    assert measured.mean == pytest.approx(mean, rel=1e-13)
    assert measured.std == pytest.approx(std, rel=1e-13)
    scaled = pixels.double() / (levels - 1) * 2 - 1
    deviation = scaled - scaled.mean((0, 2, 3), keepdim=True)
    assert measured.sigma_data == pytest.approx(deviation.square().mean().sqrt().item(), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_latents(dtype: torch.dtype):
    """Those of z = mean + std · noise, without drawing any noise; and many draws agree."""
    moments = random_moments().to(dtype)
    measured = measure(ArrayDataset(moments))
    mean, std = moments.double().chunk(2, dim=1)
    random = torch.Generator().manual_seed(0)
    z = mean.repeat(200, 1, 1, 1)
    z += std.repeat(200, 1, 1, 1) * torch.randn(z.shape, generator=random, dtype=torch.float64)
    error = 4 / (z.numel() / 4) ** 0.5  # four standard errors of as many numbers, if all were noise
    assert measured.mean == pytest.approx(z.mean((0, 2, 3)).tolist(), abs=error)
    assert measured.std == pytest.approx(z.std((0, 2, 3)).tolist(), rel=error)
    deviation = z - z.mean((0, 2, 3), keepdim=True)
    assert measured.sigma_data == pytest.approx(deviation.square().mean().sqrt().item(), rel=error)


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_change_no_bit(workers: int):
    dataset = ArrayDataset(random_moments())
    assert measure(dataset, workers=workers) == measure(dataset)


def test_some_images_are_evenly_spaced():
    dataset, reports = ArrayDataset(random_pixels()), []
    measured = measure(dataset, max_images=5, report=lambda *numbers: reports.append(numbers))
    assert measured == measure(Subset(dataset, [0, 10, 20, 30, 40]))
    assert reports == [(5, 5)]
    assert measure(dataset, max_images=1000) == measure(dataset)


# ----------------------------------------------------------------------------------------------------------------------
# Stored


def write_folder(folder: Path, classes: bool = True) -> Path:
    for i, pixels in enumerate(random_pixels(6).permute(0, 2, 3, 1).numpy()):
        path = folder / (f"class{i % 2}/{i}.png" if classes else f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def write_zip(path: Path, description: dict | None, first: bool = False, moments: bool = False) -> Path:
    """Images or moments in a ZIP, with compressed members; dataset.json last, unless `first`."""
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        if first:
            archive.writestr("dataset.json", json.dumps(description))
        for i, array in enumerate((random_moments(6) if moments else random_pixels(6)).numpy()):
            with archive.open(f"class{i % 2}/{i}.npy", "w") as file:
                np.save(file, array)
        if description and not first:
            archive.writestr("dataset.json", json.dumps(description))
    return path


def described(path: Path) -> dict:
    if path.is_dir():
        return json.loads((path / "dataset.json").read_text())
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))


def measure_and_store(path: Path) -> Statistics:
    dataset = open_to_measure(path)
    statistics = measure(dataset)
    store_statistics(path, dataset, statistics)
    return statistics


LABELS = [[f"class{i % 2}/{i}.npy", 1 - i % 2] for i in range(6)]


@pytest.mark.parametrize("given", ["sub-folders", "dataset.json", "no classes"])
def test_in_a_folder(tmp_path: Path, given: str):
    """Labels and names of classes stay what they were, wherever they came from."""
    folder = write_folder(tmp_path / "photos", classes=given != "no classes")
    if given == "dataset.json":
        pairs = [[name.replace("npy", "png"), label] for name, label in LABELS]
        contents = {"labels": pairs, "class_names": ["cat", "dog"], "source": "mine"}
        (folder / "dataset.json").write_text(json.dumps(contents))
    before = open_dataset(folder)
    statistics = measure_and_store(folder)
    after = open_dataset(folder)
    assert after.pixel_stats == statistics.to_json()
    assert after.class_names == before.class_names
    assert torch.equal(after.labels(range(6)), before.labels(range(6)))
    assert described(folder).get("source") == ("mine" if given == "dataset.json" else None)
    assert not list(tmp_path.rglob("*.tmp"))


def test_more_images_later(tmp_path: Path):
    """Folders stay the classes; statistics of other images are noticed and not used, until they are measured anew."""
    folder = write_folder(tmp_path / "photos", classes=True)
    measure_and_store(folder)
    assert "labels" not in described(folder)
    assert open_dataset(folder).notes == ()
    shutil.copy(folder / "class0/0.png", folder / "class1/9.png")
    dataset = open_dataset(folder)
    assert dataset.labels(range(7)).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert dataset.pixel_stats is None
    assert dataset.notes == (f"stored statistics are of other images and not used: edm2 dataset stats {folder}",)
    measure_and_store(folder)
    assert open_dataset(folder).pixel_stats is not None
    assert open_dataset(folder).notes == ()


def test_other_images_of_the_same_names(tmp_path: Path):
    folder = write_folder(tmp_path / "photos")
    measure_and_store(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert open_dataset(copy).notes == ()
    for path in copy.glob("*/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 8).save(path)
    assert open_dataset(copy).pixel_stats is None


def test_labels_that_earlier_versions_stored_beside_statistics(tmp_path: Path):
    """An image more, and the line says what to do."""
    folder = write_folder(tmp_path / "photos", classes=True)
    pairs = [[f"class{i % 2}/{i}.png", i % 2] for i in range(5)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    with pytest.raises(DatasetError, match=r"no label for 1 files.*remove dataset\.json if edm2 dataset stats"):
        open_dataset(folder)


@pytest.mark.parametrize("labelled", [True, False])
def test_in_a_wrapped_zip(tmp_path: Path, labelled: bool):
    """The entry goes where the labels are, or would be."""
    path = tmp_path / "wrapped.zip"
    plain = write_zip(tmp_path / "plain.zip", {"labels": LABELS} if labelled else None)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as wrapped:
        for name in source.namelist():
            wrapped.writestr(f"photos/{name}", source.read(name))
    measure_and_store(path)
    with zipfile.ZipFile(path) as wrapped:
        assert [name for name in wrapped.namelist() if "json" in name] == ["photos/dataset.json"]
    assert open_dataset(path).pixel_stats is not None
    assert open_dataset(path).labels([0, 5]).tolist() == ([1, 0] if labelled else [0, 1])


@pytest.mark.parametrize("place", ["first", "last", "none"])
def test_in_a_zip(tmp_path: Path, place: str):
    """Members stay byte for byte, wherever dataset.json stood; measured again, the file is the same."""
    labelled = None if place == "none" else {"labels": LABELS, "class_names": ["cat", "dog"]}
    path = write_zip(tmp_path / "a.zip", labelled, first=place == "first")
    before = open_dataset(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != "dataset.json"}
    statistics = measure_and_store(path)
    after = open_dataset(path)
    assert after.pixel_stats == statistics.to_json()
    assert after.class_names == before.class_names
    assert torch.equal(after.labels(range(6)), before.labels(range(6)))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [*members, "dataset.json"]
        assert {name: archive.read(name) for name in members} == members
    contents = path.read_bytes()
    measure_and_store(path)
    assert path.read_bytes() == contents
    assert list(tmp_path.iterdir()) == [path]


def test_of_latents_the_vae_stays(tmp_path: Path):
    said = {"vae": "my/vae", "mean": [0] * 4, "std": [1] * 4, "pixel_range": [-1, 1]}
    path = write_zip(tmp_path / "a.zip", {"labels": LABELS, "latents": said}, moments=True)
    statistics = measure_and_store(path)
    assert open_dataset(path).latents == {"vae": "my/vae", "pixel_range": [-1, 1], **statistics.to_json()}


def test_through_a_link(tmp_path: Path):
    """The file that it points at gets the entry, and it stays a link."""
    path = write_zip(tmp_path / "a.zip", {"labels": None})
    (tmp_path / "link.zip").symlink_to(path)
    measure_and_store(tmp_path / "link.zip")
    assert (tmp_path / "link.zip").is_symlink()
    assert open_dataset(path).pixel_stats


@pytest.mark.parametrize("entry", [{"mean": [0]}, "nonsense", {"mean": [0, 0, 0], "std": [0, 1, 1], "sigma_data": 1}])
def test_wrong_values_can_be_measured_anew(tmp_path: Path, entry):
    path = write_zip(tmp_path / "a.zip", {"labels": None, "pixels": entry})
    with pytest.raises(DatasetError, match="edm2 dataset stats"):
        open_dataset(path)
    assert measure_and_store(path).to_json() == open_dataset(path).pixel_stats


def test_a_channel_that_never_varies_is_not_stored(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "photos/a.png")
    with pytest.raises(ValueError, match=r"photos: channel 0 never varies.*nothing is stored"):
        measure_and_store(tmp_path / "photos")
    assert not (tmp_path / "photos/dataset.json").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Not stored


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a disk that is full from then on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["zip: while copied", "zip: at the end", "folder"])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path, kind: str):
    path = write_folder(tmp_path / "a") if kind == "folder" else write_zip(tmp_path / "a.zip", {"labels": LABELS})
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    size = {"folder": 10, "zip: while copied": 1000, "zip: at the end": path.stat().st_size + 10}[kind]
    with (
        files_no_larger_than(size),
        pytest.raises(OSError, match=rf"{path.name}: cannot be written: .*it is as it was"),
    ):
        write_entry(path, "pixels", {"mean": [1.0] * 3, "std": [1.0] * 3, "sigma_data": 1.0})
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


def test_no_room_for_a_second_copy_is_said_before_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_zip(tmp_path / "a.zip", {"labels": None})
    check_writable(path)
    usage = shutil.disk_usage(tmp_path)._replace(free=path.stat().st_size - 1)
    monkeypatch.setattr(description.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"a\.zip: .* needed for a second copy.*--no-write"):
        check_writable(path)
    check_writable(write_folder(tmp_path / "photos"))  # a folder needs next to nothing


def test_what_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_zip(tmp_path / "a.zip", {"labels": None})
    monkeypatch.setattr(description.os, "access", lambda folder, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError, match=r"cannot be written to; choose --no-write"):
        check_writable(path)
    with pytest.raises(ValueError, match="digits comes with scikit-learn"):
        check_writable("digits")
    with pytest.raises(DatasetError, match=r"absent\.zip: no such file"):
        check_writable(tmp_path / "absent.zip")


def test_permissions_are_those_of_a_new_file(tmp_path: Path):
    """Readable by whoever may read what this user writes, not only by the user."""
    path = write_zip(tmp_path / "a.zip", {"labels": None})
    (tmp_path / "new").touch()
    measure_and_store(path)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "new").stat().st_mode)
