"""The same images are drawn however the work is divided and however often it is stopped."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import edm2
from edm2.sampling.drawing import batches_of, decoder, store_images, undecoded, unfinished
from edm2.sampling.generation import SamplingError, require_finite
from edm2.sampling.output import DESCRIPTION, ImageFolder, ImagesInMemory, ImageStore, NpyFiles
from edm2.training import PixelCodec
from edm2.training.distributed.processes import Processes

SEEDS = [3, 0, 8, 11, 3, 5, 7, 1, 0, 2]
SETTINGS = {"network": "tiny", "interval": [0.5, 2.0]}


def fill(store: ImageStore, net, seeds: Sequence[int], batch_size: int = 3, processes: int = 1, decode=undecoded):
    """Do the work of a job's processes, one after the other; return the seeds drawn."""
    drawn = []
    for rank in range(processes):
        own = Processes(rank, processes).shard(batches_of(seeds, batch_size))
        pending = unfinished(own, store)
        batches = edm2.generate(net, pending, batch_size=batch_size, num_steps=2)
        store_images(require_finite(batches), decode, store)
        drawn += pending
    return drawn


@pytest.fixture
def reference(net) -> Tensor:
    """Samples of `SEEDS` by one process in one go."""
    store = ImagesInMemory()
    fill(store, net, SEEDS)
    return store.read(SEEDS)


def test_one_process_draws_what_generate_draws(net, reference):
    """Batches hold every seed once, in order."""
    assert batches_of(SEEDS, 3) == [[3, 0, 8], [11, 5, 7], [1, 2]]
    assert batches_of([], 3) == []
    samples = torch.cat([b.samples for b in edm2.generate(net, [3, 0, 8, 11, 5, 7, 1, 2], batch_size=3, num_steps=2)])
    assert torch.equal(reference[[0, 1, 2, 3, 5, 6, 7, 9]], samples)
    assert torch.equal(reference[4], reference[0])  # a seed given twice


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_any_number_of_processes_draws_the_same_to_the_bit(net, tmp_path, reference, processes):
    store = ImageFolder(tmp_path, SETTINGS, files=NpyFiles())
    drawn = fill(store, net, SEEDS, processes=processes)
    assert sorted(drawn) == sorted(set(SEEDS)), "each seed once, by one process"
    assert torch.equal(store.read(SEEDS), reference)


def test_what_was_lost_is_drawn_in_its_old_company(net, tmp_path, reference):
    """A batch that is there in part is drawn as a whole, so bits do not change; the part that is there stays."""
    store = ImageFolder(tmp_path, SETTINGS, subdirs=True, files=NpyFiles())
    fill(store, net, SEEDS, processes=2)
    kept = store.file(8).stat().st_mtime_ns
    for seed in (0, 2):
        store.file(seed).unlink()
    again = ImageFolder(tmp_path, SETTINGS, subdirs=True, files=NpyFiles())
    assert fill(again, net, SEEDS, processes=3) == [3, 0, 8, 1, 2]
    assert torch.equal(again.read(SEEDS), reference)
    assert again.file(8).stat().st_mtime_ns == kept
    assert fill(again, net, SEEDS) == []


@torch.no_grad()
def test_what_is_no_image_is_not_kept_as_a_black_one(make_net, tmp_path):
    store, net = ImageFolder(tmp_path, SETTINGS, files=NpyFiles()), make_net()
    fill(store, net, SEEDS[:3])
    net.unet.out_gain.fill_(torch.nan)
    with pytest.raises(SamplingError, match=r"seeds 11, 5, 7 give samples that are not finite.*--precision"):
        fill(store, net, SEEDS)
    assert store.missing(SEEDS) == [11, 5, 7, 1, 2]


def test_a_failure_to_write_is_told_and_what_is_there_is_complete(net, tmp_path, reference, monkeypatch):
    store = ImageFolder(tmp_path, SETTINGS, files=NpyFiles())
    write = store.files.write

    def fail(image: Tensor, path: Path) -> None:
        if path.stem == "000007":
            raise OSError("disk full")
        write(image, path)

    monkeypatch.setattr(store.files, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        fill(store, net, SEEDS)
    assert store.missing(SEEDS) == [7, 1, 2]
    monkeypatch.undo()
    fill(store, net, SEEDS)
    assert torch.equal(store.read(SEEDS), reference)


@pytest.mark.parametrize("kind", [ImagesInMemory, lambda: None], ids=["memory", "folder"])
def test_pixels_come_back_as_they_were_decoded(net, tmp_path, kind):
    store = kind() or ImageFolder(tmp_path / "images", SETTINGS)
    fill(store, net, SEEDS, decode=decoder(PixelCodec()))
    [batch] = edm2.generate(net, [1, 2], batch_size=3, num_steps=2)
    assert torch.equal(store.read([1, 2]), PixelCodec().decode(batch.samples))


# ------------------------------------------------------------------------------------------------ folders


def test_a_folder_says_which_settings_differ(tmp_path):
    folder = ImageFolder(tmp_path / "out", SETTINGS)
    assert folder.missing([1]) == [1]
    assert not folder.path.exists()  # it is made with the first image
    folder.claim()
    ImageFolder(folder.path, SETTINGS)
    for other in (SETTINGS | {"network": "big"}, SETTINGS | {"class": 3}):
        with pytest.raises(ValueError, match=r"other settings \((network|class) in generation\.json") as error:
            ImageFolder(folder.path, other)
        assert "\n" not in str(error.value)
    for damaged in ("{", "[]", ""):
        (folder.path / DESCRIPTION).write_text(damaged)
        with pytest.raises(ValueError, match=DESCRIPTION):
            ImageFolder(folder.path, SETTINGS)


def test_images_of_unknown_origin_are_not_taken_for_finished(tmp_path):
    folder = ImageFolder(tmp_path, SETTINGS)
    folder.save(4, torch.full((3, 4, 4), 4, dtype=torch.uint8))
    assert folder.missing([1, 2]) == [1, 2]
    with pytest.raises(ValueError, match="holds images of these seeds"):
        folder.missing([3, 4])
    folder.claim()
    assert folder.missing([3, 4]) == [3]
