"""Statistics of real images are computed once, and anew whenever something that decides them has changed."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from edm2.io.images import save_png
from edm2.metrics import load_detector, read_reference, reference_of
from edm2.metrics.detectors import PixelDetector
from edm2.metrics.image_source import NpzImages
from edm2.sweep.reference_cache import cached_reference
from edm2.training import ArrayDataset, open_dataset
from edm2.training.data.dataset import Subset


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eight images as files."""
    for i in range(8):
        save(tmp_path / "images" / f"{i}.png", seed=i)
    return tmp_path / "images"


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    save_png(torch.from_numpy(pixels).permute(2, 0, 1), path)


def packed(folder: Path, path: Path) -> Path:
    """The same images in a ZIP."""
    with zipfile.ZipFile(path, "w") as file:
        for image in sorted(folder.iterdir()):
            file.writestr(zipfile.ZipInfo(image.name, (1980, 1, 1, 0, 0, 0)), image.read_bytes())
    return path


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """Names of datasets that were looked at."""
    looked_at = []

    def counted(dataset, *arguments):
        looked_at.append(dataset.name)
        return reference_of(dataset, *arguments)

    monkeypatch.setattr("edm2.sweep.reference_cache.reference_of", counted)
    return looked_at


def reference(kept: Path, source: Path, name: str = "pixels", weights: Path | None = None):
    return cached_reference(kept, open_dataset(source), load_detector(name), weights)


def test_images_are_looked_at_once(folder, tmp_path, computed):
    first = reference(tmp_path / "kept", folder)
    os.utime(folder / "3.png", ns=(0, 0))  # its contents count
    second = reference(tmp_path / "kept", folder)
    assert computed == ["images"]
    exact = reference_of(open_dataset(folder), load_detector("pixels"))
    for found in (first, second):  # to the bit, since known scores are found by it
        assert found.num_images == 8
        assert np.array_equal(found.mu, exact.mu)
        assert np.array_equal(found.sigma, exact.sigma)
    [path] = (tmp_path / "kept").iterdir()  # serves as --ref too
    assert path.name.startswith("reference-pixels-")
    assert list(read_reference(path)) == ["pixels"]


CHANGES = {
    "another image": lambda folder: save(folder / "3.png", seed=99),
    "one more": lambda folder: save(folder / "8.png", seed=8),
    "one less": lambda folder: (folder / "3.png").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_are_looked_at_again(change, folder, tmp_path, computed):
    reference(tmp_path / "kept", folder)
    CHANGES[change](folder)
    found = reference(tmp_path / "kept", folder)
    assert len(computed) == 2
    assert np.array_equal(found.sigma, reference_of(open_dataset(folder), load_detector("pixels")).sigma)


def test_a_zip_is_known_by_its_checksums(folder, tmp_path, computed):
    """Moved or copied it is the same; of the same size and time, with another image in it, it is not."""
    path = packed(folder, tmp_path / "images.zip")
    reference(tmp_path / "kept", path)
    os.utime(path, ns=(0, 0))
    reference(tmp_path / "kept", path.rename(tmp_path / "moved.zip"))
    assert len(computed) == 1
    CHANGES["another image"](folder)
    os.utime(packed(folder, path), ns=(0, 0))
    reference(tmp_path / "kept", path)
    assert len(computed) == 2


def test_images_in_memory_and_parts_of_datasets(tmp_path, computed):

    images = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2)
    pixels = load_detector("pixels")
    whole, other = ArrayDataset(images), ArrayDataset(images.flip(3))
    for dataset in (whole, other, Subset(whole, [1, 2, 3]), Subset(whole, [1, 2, 4]), ArrayDataset(images, levels=100)):
        for _ in range(2):
            cached_reference(tmp_path, dataset, pixels)
    assert len(computed) == 5


def test_weights_and_detectors_have_references_of_their_own(folder, tmp_path, computed):
    class Other(PixelDetector):
        name = "other"

    (tmp_path / "weights").write_text("first")
    for text in ("first", "second, of another size"):
        (tmp_path / "weights").write_text(text)
        for _ in range(2):
            reference(tmp_path / "kept", folder, weights=tmp_path / "weights")
    assert len(computed) == 2
    cached_reference(tmp_path / "kept", open_dataset(folder), Other())
    assert len(computed) == 3


def test_what_cannot_be_recognized_is_not_kept(folder, tmp_path, computed, monkeypatch):
    """A function of the user's own may have changed by the next time, and so may an NPZ file."""
    (tmp_path / "own_features.py").write_text("def embed(images):\n    return images.float().mean(dim=(2, 3))\n")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        reference(tmp_path / "kept", folder, "own_features:embed")
    np.savez(tmp_path / "images.npz", np.zeros((4, 2, 2, 3), dtype=np.uint8))
    for _ in range(2):
        cached_reference(tmp_path / "kept", NpzImages(tmp_path / "images.npz"), load_detector("pixels"))
    assert len(computed) == 4
    assert not (tmp_path / "kept").exists()
