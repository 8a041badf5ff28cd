"""Reading ahead in worker processes changes when images are read, and nothing else."""

import os
import signal
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from dataset_files import encoded, write_folder
from PIL import Image

from edm2.training.data import loader
from edm2.training.data.archive.files import StorageError
from edm2.training.data.dataset import ArrayDataset, DatasetError, Indices, open_dataset
from edm2.training.data.loader import WorkerError, data_loader
from edm2.training.data.order import PositionBatches, ShuffledOrder

WORKERS = [0, 2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten small images in two classes."""
    images = {f"{'ab'[k % 2]}/{k}.png": encoded(Image.new("L", (4, 4), k)) for k in range(10)}
    return write_folder(tmp_path / "data", images)


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_are_those_of_the_dataset_in_order(folder, workers):
    """A finite list of them ends. The global generator is left alone, from which initialization and dropout draw."""
    dataset = open_dataset(folder)
    state = torch.random.get_rng_state()
    batches = PositionBatches(ShuffledOrder(len(dataset), seed=0), 0, batch_size=4)
    for (images, labels, conditions), indices in islice(
        zip(data_loader(dataset, batches, workers), batches, strict=True), 12
    ):
        assert torch.equal(images, dataset.images(indices))
        assert torch.equal(labels, dataset.labels(indices))
        assert conditions is None
    assert [len(labels) for _, labels, _ in data_loader(dataset, [[0], [1, 2], [3, 4, 5]], workers)] == [1, 2, 3]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_arrives_as_its_one_line(folder, workers):
    """Also from a worker, whose exceptions torch turns into the text of a traceback."""
    (folder / "a" / "4.png").write_bytes(b"damaged")
    batches = data_loader(open_dataset(folder), [[0, 1], [2, 3]], workers)
    next(batches)
    with pytest.raises(DatasetError) as failure:
        next(batches)
    assert str(failure.value) == (
        f"{folder / 'a' / '4.png'}: cannot be read: not an image, or damaged (index 2); "
        f"edm2 dataset check {folder} finds all such files"
    )


# ------------------------------------------------------------------------------------------------ workers that fail


class Sleepy(ArrayDataset):
    """Takes its time, and kills who reads it for the image `deadly`."""

    def __init__(self, seconds: float = 0.0, deadly: int = -1) -> None:
        super().__init__(torch.zeros(10, 1, 4, 4, dtype=torch.uint8), name="sleepy")
        self.seconds = seconds
        self.deadly = deadly

    def images(self, indices: Indices) -> torch.Tensor:
        time.sleep(self.seconds)
        if self.deadly in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().images(indices)


def test_a_worker_that_is_killed_ends_the_wait_in_one_line():
    """As the system does when memory has run out."""
    batches = data_loader(Sleepy(deadly=7), [[index] for index in range(10)], workers=2)
    start = time.monotonic()
    with pytest.raises(WorkerError) as failure:
        list(batches)
    assert time.monotonic() - start < 10  # torch looks after its workers every 5 seconds if it gets no signal
    line = str(failure.value)
    assert line.startswith("sleepy: a process that reads data has died (")
    assert "lower --workers" in line
    assert "run the same command again" in line
    assert len(line.splitlines()) == 1


@pytest.mark.slow
def test_a_storage_that_never_answers_ends_the_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader, "TIMEOUT", 1)
    batches = data_loader(Sleepy(seconds=20), [[3, 1], [2, 5]], workers=1)
    with pytest.raises(StorageError, match="sleepy: no answer for 1 seconds while images of indices 3, 1 were read"):
        next(batches)


def test_a_mistake_in_a_program_keeps_its_traceback():
    """It is nothing that the user could mend."""
    with pytest.raises(IndexError, match="Traceback"):
        next(data_loader(Sleepy(), [[99]], workers=1))
