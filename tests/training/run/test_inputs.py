"""A run is known by the contents of its data and first network, and trains in one process at a time."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from dataset_files import encoded, npy, write_folder
from PIL import Image
from tiny_run import run, tiny_config, tiny_data

from edm2.networks import VectorCondition
from edm2.training import Trainer, open_dataset
from edm2.training.run.inputs import INPUTS_FILE, read_inputs
from edm2.training.run.run_folder import RunFolder, RunFolderError, open_run_data


def photos(folder, count: int = 12, seed: int = 0, classes=("cat", "cow", "dog")):
    """Images of 8x8 gray pixels in class folders."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    names = (f"{classes[i % len(classes)]}/{i:03}.png" for i in range(count))
    return write_folder(folder, {name: encoded(Image.fromarray(x)) for name, x in zip(names, pixels, strict=True)})


def train(out, data, duration: int, **changes) -> Trainer:
    settings = {"data": str(data), "duration": duration, "checkpoint_every": 8} | changes
    config = tiny_config(out)
    config = type(config)(**{**vars(config), **settings})
    trainer = Trainer(config, dataset=open_dataset(str(data)))
    trainer.run()
    return trainer


@pytest.mark.parametrize("out", ["photos/run", "link/a/b", "photos"])
def test_a_run_does_not_lie_among_its_images(tmp_path, out):
    """Its samples would be some of them at the next start; hidden folders are none of the data."""
    data = photos(tmp_path / "photos")
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(RunFolderError, match=r"lies among the images in .*photos.*choose another --out"):
        train(tmp_path / out, data, 16)
    assert len(open_dataset(data)) == 12
    train(data / ".runs/one", data, 16)
    train(tmp_path / "photos-run", data, 16)


def test_changed_images_are_refused_with_what_changed_and_the_same_go_on_elsewhere(tmp_path):
    data = photos(tmp_path / "photos")
    train(tmp_path / "run", data, 16)

    def others(count=12, seed=0, classes=("cat", "cow", "dog")) -> None:
        shutil.rmtree(data)
        photos(data, count, seed, classes)

    for changes, named in (
        ({"count": 15}, "12 images then, 15 now"),
        ({"classes": ("cat", "cow", "fox")}, r"classes cat \(4\), cow \(4\), dog \(4\) then"),
        ({"seed": 1}, r"as many images \(12\), but not the same"),
    ):
        others(**changes)
        with pytest.raises(RunFolderError, match=named):
            train(tmp_path / "run", data, 24)
        with pytest.raises(ValueError, match=named):
            open_run_data(tmp_path / "run")
    others()
    moved = shutil.move(data, tmp_path / "pictures")
    assert train(tmp_path / "run", moved, 24).images_seen == 24
    assert len(open_run_data(tmp_path / "run")) == 12


def test_a_run_without_a_record_of_its_images_adopts_them_under_the_same_name(tmp_path):
    data = photos(tmp_path / "photos")
    train(tmp_path / "run", data, 16)
    (tmp_path / "run" / INPUTS_FILE).unlink()
    moved = shutil.copytree(data, tmp_path / "other")
    with pytest.raises(RunFolderError, match=r"was begun with --data .*photos"):
        train(tmp_path / "run", moved, 24)
    train(tmp_path / "run", data, 24)
    assert read_inputs(tmp_path / "run")["data"]["images"] == 12
    train(tmp_path / "run", moved, 32)


def test_conditions_are_inputs_too(tmp_path):
    """Those that the network takes; an older run adopts them, and others may come and go."""
    data, colours = photos(tmp_path / "photos"), np.random.default_rng(0).normal(size=(12, 3))

    def write(name: str, values: np.ndarray) -> None:
        names = (open_dataset(data).item_name(i) for i in range(12))
        write_folder(
            data, {f"conditions/{name}/{path[:-4]}.npy": npy(x) for path, x in zip(names, values, strict=True)}
        )

    write("colour", colours)
    network = replace(tiny_config(tmp_path).network, conditions=(VectorCondition("colour", 3),))
    train(tmp_path / "run", data, 16, network=network)
    known = read_inputs(tmp_path / "run")
    write("depth", colours)
    train(tmp_path / "run", data, 24, network=network)
    write("colour", colours + 1)
    with pytest.raises(RunFolderError, match=r"other conditions of the same images \(colour\)"):
        train(tmp_path / "run", data, 32, network=network)
    with pytest.raises(ValueError, match="colour"):
        open_run_data(tmp_path / "run")
    del known["data"]["conditions"]  # as an earlier version wrote it
    (tmp_path / "run" / INPUTS_FILE).write_text(json.dumps(known))
    train(tmp_path / "run", data, 32, network=network)
    assert read_inputs(tmp_path / "run")["data"]["conditions"].keys() == {"colour"}


def test_the_first_network_is_not_needed_any_more_and_not_another(tmp_path):
    one, another = (run(tiny_config(tmp_path / name, duration=8, seed=s)) for name, s in (("a", 0), ("b", 1)))
    first, other = one.folder.raw_weights, another.folder.raw_weights
    run(tiny_config(tmp_path / "run", init=str(first), duration=16, checkpoint_every=8))
    with pytest.raises(RunFolderError, match="was begun from another network"):
        run(tiny_config(tmp_path / "run", init=str(other), duration=24))
    moved = shutil.move(first, tmp_path / "moved.safetensors")
    run(tiny_config(tmp_path / "run", init=str(moved), duration=24, checkpoint_every=8))
    moved.unlink()
    assert run(tiny_config(tmp_path / "run", init=str(moved), duration=32)).images_seen == 32


def test_a_folder_trains_one_run_at_a_time(tmp_path):
    config = tiny_config(tmp_path / "run")
    with RunFolder(config.out).locked(), pytest.raises(RunFolderError, match="another process trains here"):
        Trainer(config, dataset=tiny_data()).run()
    assert run(config).images_seen == config.duration
