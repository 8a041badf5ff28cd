"""Broken files are replaced by the same images everywhere and always, told of once, and bounded in number."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import encoded, write_folder, write_zip
from PIL import Image

from edm2.networks import NetworkConfig
from edm2.training.config import TrainingConfig
from edm2.training.data.batches import BatchStream
from edm2.training.data.dataset import DatasetError, Subset, open_dataset
from edm2.training.data.files import StorageError
from edm2.training.data.loader import data_loader
from edm2.training.data.order import PositionBatches, ShuffledOrder
from edm2.training.data.tolerance import BrokenFiles, TolerantDataset
from edm2.training.randomness import PositionRandom

COUNT = 12
BROKEN = (3, 4, 11)  # two that follow each other, and the last


def images(broken: tuple[int, ...] = BROKEN) -> dict[str, bytes]:
    """Image k is full of k, and of class k."""
    files = {f"{k:02}/{k}.png": encoded(Image.new("L", (4, 4), k)) for k in range(COUNT)}
    return files | {f"{k:02}/{k}.png": files[f"{k:02}/{k}.png"][:40] for k in broken}


@pytest.fixture(params=[write_folder, write_zip], ids=["folder", "zip"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return request.param(tmp_path / {write_folder: "data", write_zip: "data.zip"}[request.param], images())


def tolerant(data: Path, limit: int = 3) -> TolerantDataset:
    return TolerantDataset(open_dataset(data, skip_broken=limit), limit)


def test_the_next_usable_image_takes_the_place_with_its_own_label(data: Path):
    shown, labels, broken = tolerant(data).batch(range(COUNT))
    expected = [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10, 0]
    assert shown[:, 0, 0, 0].tolist() == expected
    assert labels.tolist() == expected
    assert [line.partition(": ")[0] for line in dict.fromkeys(broken)] == [f"{data}/{k:02}/{k}.png" for k in BROKEN]
    assert all(line.endswith(f"(index {k})") for line, k in zip(dict.fromkeys(broken), BROKEN, strict=True))


def test_it_depends_on_nothing_but_the_index(data: Path):
    """Neither on what else is in the batch nor on what was read before."""
    whole = tolerant(data).images(range(COUNT))
    order = np.random.default_rng(0).permutation(COUNT)
    again = tolerant(data)
    assert torch.equal(torch.cat([again.images([index]) for index in order]), whole[order])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_it_is_the_same_however_many_workers_read(data: Path, workers: int):
    dataset, told = tolerant(data), []
    batches = PositionBatches(ShuffledOrder(COUNT, seed=0), 0, batch_size=4)
    found = BrokenFiles(3, tell=told.append)
    read = list(islice(data_loader(dataset, batches, workers, on_broken=found.add), 9))  # three epochs
    for (pixels, labels), indices in zip(read, batches, strict=False):
        assert torch.equal(pixels, dataset.images(indices))
        assert labels.tolist() == pixels[:, 0, 0, 0].tolist()
    assert len(told) == len(found) == 3  # each once


def test_what_is_usable_is_left_as_it_is(tmp_path: Path):
    data = write_folder(tmp_path / "data", images(broken=()))
    dataset = tolerant(data)
    assert torch.equal(dataset.images(range(COUNT)), open_dataset(data).images(range(COUNT)))
    assert dataset.batch(range(COUNT)).broken == ()
    for name in ("name", "shape", "kind", "levels", "class_names", "latents", "pixel_stats"):
        assert getattr(dataset, name) == getattr(dataset.dataset, name)


def test_a_part_of_a_dataset_is_filled_up_from_itself(data: Path):
    """No image that is held out gets into training."""
    part = TolerantDataset(Subset(open_dataset(data), [0, 3, 8]), 3)
    assert part.images(range(3))[:, 0, 0, 0].tolist() == [0, 8, 8]


def test_a_broken_first_image_does_not_prevent_opening(tmp_path: Path):
    data = write_folder(tmp_path / "data", images(broken=(0, 1)))
    assert tolerant(data, 2).images([0, 1, 2])[:, 0, 0, 0].tolist() == [2, 2, 2]
    with pytest.raises(DatasetError, match=r"1\.png: cannot be read: .* \(index 1\)"):
        tolerant(data, 1)


def test_more_in_a_row_than_allowed_are_refused(data: Path):
    with pytest.raises(DatasetError, match=r"4\.png: cannot be read"):
        tolerant(data, 1).images([3])


def test_nothing_usable_at_all_ends(tmp_path: Path):
    data = write_folder(tmp_path / "data", images(broken=tuple(range(COUNT))))
    with pytest.raises(DatasetError):
        open_dataset(data, skip_broken=100)


def test_storage_that_fails_is_no_broken_file(data: Path, monkeypatch: pytest.MonkeyPatch):
    """Another attempt might succeed, and then another image would have been trained on."""
    dataset = tolerant(data)

    def fail(indices: object) -> None:
        raise StorageError("no answer")

    monkeypatch.setattr(dataset.dataset, "images", fail)
    with pytest.raises(StorageError):
        dataset.images([0])


def feed(data: Path, workers: int, limit: int = 3) -> BatchStream:
    network = NetworkConfig(img_resolution=4, img_channels=1, label_dim=COUNT, channel_mult=(1,))
    config = TrainingConfig(data=str(data), out="none", network=network, batch_size=4, duration=96, workers=workers)
    return BatchStream(
        config, open_dataset(data, limit), PositionRandom(0, 64, torch.device("cpu")), BrokenFiles(limit)
    )


def test_a_run_that_is_resumed_sees_what_it_would_have_seen(data: Path):
    """From the place where it stopped, whoever has met the broken files before, with other workers."""
    steps = list(islice(feed(data, workers=0).steps(0), 8))
    for start, workers in ((0, 2), (4, 0), (20, 1)):
        again = islice(feed(data, workers).steps(start), 8 - start // 4)
        for [(images, labels)], [(expected, classes)] in zip(again, steps[start // 4 :], strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(labels, classes)


def test_a_feed_without_tolerance_ends_at_the_first(data: Path):
    with pytest.raises(DatasetError, match="cannot be read"):
        list(islice(feed(data, workers=0, limit=0).steps(0), 3))


# ------------------------------------------------------------------------------------------------ the list


def test_each_is_told_of_once_and_more_than_allowed_are_refused():
    told: list[str] = []
    found = BrokenFiles(2, tell=told.append)
    found.add(["a", "a", "b"])
    found.add(["b"])
    assert [line.partition(";")[0] for line in told] == ["a", "b"]
    assert "(2 of 2 that --skip-broken allows)" in told[1]
    with pytest.raises(DatasetError, match="c; 3 files are broken, and --skip-broken allows 2"):
        found.add(["c"])


def test_the_list_outlives_the_process_and_is_shared(tmp_path: Path):
    """A resumed run, and the other processes of this one, count and tell of each file once."""
    path, told = tmp_path / "broken.txt", []
    first, second = (BrokenFiles(2, path, told.append) for _ in range(2))
    first.add(["a"])
    second.add(["a", "b"])
    assert [line.partition(";")[0] for line in told] == ["a", "b"]
    assert path.read_text() == "a\nb\n"
    resumed = BrokenFiles(2, path, told.append)
    assert len(resumed) == 2
    with pytest.raises(DatasetError, match=r"c; 3 files are broken, all listed in .*broken\.txt"):
        resumed.add(["c"])


def test_nothing_is_written_where_nothing_is_broken(tmp_path: Path):
    BrokenFiles(2, tmp_path / "broken.txt").add([])
    assert not list(tmp_path.iterdir())
