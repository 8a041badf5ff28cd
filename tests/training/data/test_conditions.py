"""Conditions of datasets: found beside the images, made of them, measured, and drawn by position in a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import encoded, npy, write_folder, write_zip
from PIL import Image

from edm2.networks import ImageCondition, NetworkConfig, ScalarCondition, TokenCondition, VectorCondition
from edm2.networks.conditions import noise_level
from edm2.training import ArrayDataset, DatasetError, TrainingConfig, open_dataset
from edm2.training.data.archive import index
from edm2.training.data.batches import BatchStream
from edm2.training.data.conditions import Conditioned, describe_condition, parse_maker
from edm2.training.randomness import PositionRandom

COUNT = 12


def files_of(count: int = COUNT) -> dict[str, bytes]:
    """Images with an edge image, a mean colour, an age and a caption each."""
    random, files = np.random.default_rng(0), {}
    for i in range(count):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        stem = f"class{i % 2}/img{i:02}"
        files |= {
            f"{stem}.png": encoded(Image.fromarray(pixels)),
            f"conditions/edges/{stem}.png": encoded(Image.fromarray(pixels[::2, ::2, 0])),
            f"conditions/colour/{stem}.npy": npy(pixels.mean(axis=(0, 1))),
            f"conditions/age/{stem}.npy": npy(np.float64(i)),
            f"conditions/caption/{stem}.npy": npy(random.normal(size=(1 + i % 3, 5)).astype(np.float16)),
        }
    return files


@pytest.fixture(params=["folder", "zip", "indexed zip"])
def path(request, tmp_path, monkeypatch) -> Path:
    if request.param == "folder":
        return write_folder(tmp_path / "data", files_of())
    if request.param == "indexed zip":
        monkeypatch.setattr(index, "LARGE", 10)
        open_dataset(write_zip(tmp_path / "data.zip", files_of()))  # which writes the index
        assert (tmp_path / ".data.zip.index").exists()
        return tmp_path / "data.zip"
    return write_zip(tmp_path / "data.zip", files_of())


def test_conditions_lie_beside_the_images(path):
    dataset = open_dataset(path)
    assert (len(dataset), dataset.class_names) == (COUNT, ("class0", "class1"))
    assert dataset.condition_names == ("age", "caption", "colour", "edges")
    names = [dataset.item_name(i) for i in range(COUNT)]
    assert dataset.read_condition("age", range(COUNT)).tolist() == [int(name[-6:-4]) for name in names]
    chosen = Conditioned(dataset, ["colour", "edges", "lowres"], ["lowres=downsample:4"])
    images, _, given = chosen.read([3, 5])
    torch.testing.assert_close(given["colour"], images.float().mean(dim=(2, 3)))
    assert torch.equal(given["edges"], images[:, :1, ::2, ::2].float())
    torch.testing.assert_close(given["lowres"].mean(dim=(2, 3)), given["colour"])
    assert given["lowres"].shape == (2, 3, 2, 2)
    for name, values in chosen.conditions([3, 5]).items():
        assert torch.equal(values, given[name])


def test_kinds_and_statistics_are_those_of_the_values(path):
    dataset = open_dataset(path)
    every = range(COUNT)
    age, colour, edges, caption = (describe_condition(dataset, n) for n in ("age", "colour", "edges", "caption"))
    assert (age, type(colour), type(edges), type(caption)) == (
        ScalarCondition("age", mean=(5.5,), std=(np.arange(12).std(),)),
        VectorCondition,
        ImageCondition,
        TokenCondition,
    )
    values = dataset.read_condition("colour", every)
    np.testing.assert_allclose(colour.mean, values.mean(dim=0), rtol=1e-6)
    np.testing.assert_allclose(colour.std, values.std(dim=0, correction=0), rtol=1e-5)
    assert (edges.img_channels, caption.size, caption.length) == (1, 5, 3)
    tokens = dataset.read_condition("caption", every)
    there = tokens[~tokens[:, :, 0].isnan()]
    assert len(there) == sum(1 + i % 3 for i in range(COUNT))
    np.testing.assert_allclose(caption.mean, there.mean(dim=0), rtol=1e-4, atol=1e-6)
    assert describe_condition(dataset, "age", "vector").size == 1


def broken(**changes: bytes | None) -> dict[str, bytes]:
    files = files_of()
    for name, data in changes.items():
        path = f"conditions/{name}/class1/img03.npy"
        if data is None:
            del files[path]
        else:
            files[path] = data
    return files


CONSTANT = {f"conditions/age/class{i % 2}/img{i:02}.npy": npy(np.float64(3)) for i in range(COUNT)}


@pytest.mark.parametrize(
    ("name", "files", "complaint"),
    [
        (
            "age",
            broken(age=None),
            r"conditions/age: has no file for 1 of 12 images, the first is class1/img03.png; add",
        ),
        ("colour", broken(colour=npy(np.zeros(4))), r"data/colour: is \[4\] for one image and \[3\] for another"),
        ("colour", broken(colour=npy(np.array([1, np.nan, 2]))), "class1/img03.npy.*NaN or infinity; store finite"),
        ("caption", broken(caption=npy(np.zeros((2, 4)))), "for one image and .* for another; make all alike"),
        ("colour", broken(colour=npy(np.array(["red"]))), "img03.npy.*expected numbers"),
        ("colour", broken(colour=b"nonsense"), "img03.npy: cannot be read"),
        ("age", files_of() | CONSTANT, "age: never varies, so there is nothing to learn from; leave it out"),
    ],
    ids=["missing", "shape", "NaN", "size of tokens", "text", "damaged", "constant"],
)
def test_conditions_that_cannot_be_used_are_refused(name, files, complaint, tmp_path):
    dataset = open_dataset(write_folder(tmp_path / "data", files))
    with pytest.raises(DatasetError, match=complaint):
        describe_condition(dataset, name)


def test_a_condition_that_is_not_there_is_refused(path):
    dataset = open_dataset(path)
    with pytest.raises(DatasetError, match=r"has no condition depth \(it has age, caption, colour, edges\)"):
        Conditioned(dataset, ["depth"])
    with pytest.raises(DatasetError, match=r"age: values of shape \[1\] are scalar, not image"):
        describe_condition(dataset, "age", "image")
    with pytest.raises(ValueError, match="write NAME=downsample:FACTOR"):
        parse_maker("lowres=sharpen:2")


def test_a_class_called_conditions_stays_one(tmp_path):
    image = encoded(Image.new("RGB", (8, 8)))
    dataset = open_dataset(write_folder(tmp_path / "data", {"conditions/a.png": image, "other/a.png": image}))
    assert (dataset.class_names, dataset.condition_names) == (("conditions", "other"), ())


# ---------------------------------------------------------------------------------------------------- in a run


def stream(tmp_path, conditions, **settings) -> BatchStream:
    """Images whose columns rise from left to right, with that as a condition, too."""
    images = (torch.arange(8) * 20).expand(64, 1, 8, 8).to(torch.uint8) + torch.arange(64).view(-1, 1, 1, 1).to(
        torch.uint8
    )
    dataset = ArrayDataset(images, conditions={"age": torch.arange(64.0)})
    network = NetworkConfig(8, 1, 0, model_channels=8, channel_mult=(1,), conditions=conditions)
    makers = ("lowres=downsample:2",) if any(c.name == "lowres" for c in conditions) else ()
    settings = {"duration": 1024, "batch_size": 256, "make_conditions": makers, "workers": 0, **settings}
    config = TrainingConfig(data="data", out=str(tmp_path), network=network, **settings)
    return BatchStream(config, dataset, PositionRandom(0, 64, torch.device("cpu")))


def test_an_image_condition_is_mirrored_with_its_image(tmp_path):
    batch = next(stream(tmp_path, (ImageCondition("lowres", 1),), xflip=True).steps(0))[0]
    lowres = batch.conditions["lowres"]
    mirrored = batch.images[:, 0, 0, 0] > batch.images[:, 0, 0, -1]
    assert 80 < mirrored.sum() < 176
    assert torch.equal(lowres[:, 0, 0, 0] > lowres[:, 0, 0, -1], mirrored)


def test_conditions_are_dropped_and_disturbed_by_position(tmp_path):
    image = ImageCondition("lowres", 1, mean=(100.0,), std=(50.0,), noise=0.5)
    conditions = (image, noise_level(image), ScalarCondition("age", dropout=0.25))
    batch = next(stream(tmp_path, conditions).steps(0))[0]
    age, level = batch.conditions["age"], batch.conditions["lowres_noise"]
    assert 40 < age.isnan().sum() < 90
    assert 0 <= level.min() < 0.05 < 0.45 < level.max() <= 0.5
    noise = (
        batch.conditions["lowres"]
        - next(stream(tmp_path, (ImageCondition("lowres", 1),)).steps(0))[0].conditions["lowres"]
    )
    measured = noise.std(dim=(1, 2, 3)) / 50
    assert (measured / level)[level > 0.1].mean() == pytest.approx(1, abs=0.05)
    parts = [part for part in next(stream(tmp_path, conditions, micro_batch=64).steps(0))]
    for name, values in batch.conditions.items():
        torch.testing.assert_close(torch.cat([part.conditions[name] for part in parts]), values, equal_nan=True)


@pytest.mark.parametrize("path", ["folder", "zip"], indirect=True)
def test_the_longest_tokens_are_found_though_few_images_are_measured(path):
    """A run would end at the first image with more, and could not go on: its conditions must not change."""
    chosen = Conditioned(open_dataset(path), ["caption"])
    assert describe_condition(chosen, "caption", max_images=2).length == 3  # those of one and two tokens


def test_tokens_of_all_batches_have_one_length(tmp_path):
    dataset = open_dataset(write_folder(tmp_path / "data", files_of()))
    caption = describe_condition(dataset, "caption")
    network = NetworkConfig(8, 3, 0, model_channels=8, channel_mult=(1,), conditions=(caption,))
    config = TrainingConfig(data="d", out="r", network=network, duration=8, batch_size=1, workers=0)
    steps = BatchStream(config, dataset, PositionRandom(0, 64, torch.device("cpu"))).steps(0)
    assert {tuple(next(steps)[0].conditions["caption"].shape) for _ in range(8)} == {(1, 3, 5)}
