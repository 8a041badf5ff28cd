"""A picture shows what the network will see, and copies are found whatever their quality."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import npy, write_folder
from PIL import Image

from edm2.datasets.look import COLUMNS, ROWS, near_duplicates, save_look
from edm2.training import ArrayDataset, open_dataset


def photos(count: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """Smooth pictures that differ: uint8 [N, H, W, 3]."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in coarse])


def dataset_of(images: np.ndarray) -> ArrayDataset:
    return ArrayDataset(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))


def worse(image: np.ndarray, quality: int) -> np.ndarray:
    """The image as a JPEG of half the size, enlarged again."""
    buffer = io.BytesIO()
    small = Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2))
    small.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).resize(image.shape[1::-1]))


@pytest.mark.parametrize("workers", [1, 3])
def test_copies_are_found_and_others_are_not(workers: int):
    originals = photos(300, size=128)
    copies = np.stack([originals[7], worse(originals[20], 60), worse(originals[33], 90)])
    reports: list[tuple[int, int]] = []
    dataset = dataset_of(np.concatenate([originals, copies]))
    found = near_duplicates(dataset, np.arange(303), workers, lambda *report: reports.append(report))
    assert found == [(300, 7), (301, 20), (302, 33)]
    assert reports[-1] == (303, 303)
    assert near_duplicates(dataset, np.arange(300)) == []


def test_copies_of_latents_are_found_wherever_they_stand():
    """Each latent for itself: scaled by the images that happen to be read with it, a copy would look different."""
    mean = torch.from_numpy(photos(60).transpose(0, 3, 1, 2) / 30).float()
    mean[0] *= 5  # read with the first, but not with its copy
    latents = torch.cat([mean, mean[:, :1], torch.ones(60, 4, 32, 32)], dim=1)
    latents[[20, 59]] = latents[[1, 2]]
    found = near_duplicates(ArrayDataset(latents), np.arange(60))
    assert found == [(20, 1), (59, 2)]


def test_pictures_on_white_are_compared_by_what_is_on_it():
    """Icons differ in few pixels."""
    icons = np.full((40, 32, 32, 3), 255, np.uint8)
    icons[:, 12:20, 12:20] = photos(40, size=8)
    assert near_duplicates(dataset_of(icons), np.arange(40)) == []


def test_none_are_found_among_none():
    assert near_duplicates(open_dataset("digits"), np.arange(0)) == []


def test_single_colors():
    blank = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (0, 255, 254, 128, 0)])
    assert near_duplicates(dataset_of(blank), np.arange(5)) == [(2, 1), (4, 0)]


def test_the_digits_are_all_different():
    digits = open_dataset("digits")
    assert len(near_duplicates(digits, np.arange(len(digits)))) < 10


@pytest.mark.parametrize("classes", [0, 3, 30])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 24), (4, 100, 70)])
def test_the_picture_has_a_row_for_each_class(tmp_path: Path, classes: int, shape: tuple[int, ...]):
    images = torch.randint(256, (120, *shape)).to(torch.uint8)
    labels = torch.arange(120) % classes if classes else None
    names = [f"{k} \u00e4\u732b" + "x" * k for k in range(classes)] if classes else None
    shown = save_look(ArrayDataset(images, labels, names), tmp_path / "new/look.png")
    assert shown == {0: ROWS * COLUMNS, 3: 3 * COLUMNS, 30: ROWS * 4}[classes]
    assert Image.open(tmp_path / "new/look.png").size[0] > COLUMNS * shape[2]


def test_pixels_are_those_of_the_dataset(tmp_path: Path):
    images = np.full((4, 64, 64, 3), (10, 200, 30), np.uint8)
    save_look(dataset_of(images), tmp_path / "look.png")
    assert Image.open(tmp_path / "look.png").getpixel((5, 5)) == (10, 200, 30)


def test_latents_are_decoded(tmp_path: Path):
    pytest.importorskip("diffusers")
    from tiny_vae import save_tiny_vae

    vae = save_tiny_vae(tmp_path / "vae")
    latents = {"vae": str(vae), "mean": [0] * 4, "std": [1] * 4}
    moments = npy(np.ones((8, 4, 4), np.float32))
    data = write_folder(
        tmp_path / "data",
        {"1.npy": moments, "2.npy": moments, "dataset.json": json.dumps({"latents": latents}).encode()},
    )
    assert save_look(open_dataset(data), tmp_path / "look.png") == 2
    assert near_duplicates(open_dataset(data), np.arange(2)) == [(1, 0)]
