"""Reading ahead in worker processes changes when images are read, and nothing else."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edm2.training.data import DatasetError, open_dataset
from edm2.training.loader import data_loader
from edm2.training.order import PlaceBatches, ShuffledOrder

WORKERS = [0, 2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten small images in two classes."""
    for k in range(10):
        path = tmp_path / "data" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), k, dtype=np.uint8)).save(path)
    return tmp_path / "data"


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_are_those_of_the_dataset_in_order(folder, workers):
    dataset = open_dataset(folder)
    batches = PlaceBatches(ShuffledOrder(len(dataset), seed=0), 0, batch_size=4)
    for (images, labels), indices in islice(zip(data_loader(dataset, batches, workers), batches, strict=True), 12):
        assert torch.equal(images, dataset.images(indices))
        assert torch.equal(labels, dataset.labels(indices))


@pytest.mark.parametrize("workers", WORKERS)
def test_a_finite_list_of_batches_ends(folder, workers):
    dataset = open_dataset(folder)
    assert [len(labels) for _, labels in data_loader(dataset, [[0], [1, 2], [3, 4, 5]], workers)] == [1, 2, 3]


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_arrives_as_its_one_line(folder, workers):
    """Also from a worker, whose exceptions torch turns into the text of a traceback."""
    (folder / "a" / "4.png").write_bytes(b"damaged")
    batches = data_loader(open_dataset(folder), [[0, 1], [2, 3]], workers)
    next(batches)
    with pytest.raises(DatasetError) as failure:
        next(batches)
    assert str(failure.value) == f"{folder / 'a' / '4.png'}: cannot be read: not an image, or damaged"


@pytest.mark.parametrize("workers", WORKERS)
def test_reading_leaves_the_global_generator_alone(folder, workers):
    """Initialization and dropout draw from it: the number of workers must not change them."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    next(data_loader(open_dataset(folder), [[0]], workers))
    assert torch.equal(torch.rand(1), expected)


@pytest.fixture
def spawn() -> Iterator[None]:
    """Start processes as macOS and Windows do."""
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method("spawn", force=True)
    yield
    torch.multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("spawn")
def test_spawned_workers_read_too(folder):
    """Nothing is inherited: all that a worker needs is pickled, after the archive was opened here."""
    images, _ = next(data_loader(open_dataset(folder), [[0, 9]], workers=1))
    assert images[:, 0, 0, 0].tolist() == [0, 9]
