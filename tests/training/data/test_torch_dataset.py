"""Datasets of PyTorch in the trainer and on the command line: pixels, values of any range, conditions."""

import importlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from command_line import complaint, edm2, succeed
from PIL import Image
from tiny_run import assert_same_bits, final_state, tiny_config, tiny_data

from edm2 import generate, load
from edm2.post_hoc_ema import find_snapshots
from edm2.training import Trainer, codec_from_json
from edm2.training.data.codecs import CODECS, ValueCodec
from edm2.training.data.dataset import DatasetError, open_dataset
from edm2.training.data.torch_dataset import TorchDataset, as_dataset

MODULE = """
import torch

class Heights(torch.utils.data.Dataset):  # of a terrain, in metres, and a second channel in kelvin
    def __len__(self):
        return 60

    def __getitem__(self, i):
        noise = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(i))
        return torch.tensor([[[1500.0]], [[280.0]]]) + torch.tensor([[[300.0]], [[5.0]]]) * noise

class Faces(Heights):
    classes = ["round", "square"]

    def __init__(self):
        self.targets = [i % 2 for i in range(60)]

    def __getitem__(self, i):
        return (super().__getitem__(i)[:1] / 10).clip(0, 255).to(torch.uint8), i % 2

def nothing():
    return 7
"""
QUICK = ("--preset", "digits8", "--channels", 8, "--batch", 8, "--device", "cpu", "--workers", 0, "--holdout", 0)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "terrain.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("terrain")


class Pairs(list):
    """A list of items is a map-style dataset."""


def pairs() -> tuple[Pairs, torch.Tensor, torch.Tensor]:
    ours = tiny_data()
    images, labels = ours.images(range(40)), ours.labels(range(40))
    items = zip(images, labels, strict=True)
    return Pairs((Image.fromarray(image[0].numpy()), int(label)) for image, label in items), images, labels


def test_pairs_of_image_and_label_are_what_they_are():
    data, images, labels = pairs()
    found = as_dataset(data)
    assert (found.shape, found.kind, found.class_names) == ((1, 8, 8), "pixels", ("0", "1", "2"))
    assert torch.equal(found.images([3, 1]), images[[3, 1]])
    assert torch.equal(found.labels(range(40)), labels)
    assert found.conditions([0]) is None
    assert as_dataset(found) is found


def test_dicts_have_conditions_and_each_item_is_read_once():
    class Counting(list):
        reads = 0

        def __getitem__(self, i):
            type(self).reads += 1
            return {"image": torch.full((3, 8, 8), float(i)), "depth": [i, -i], "label": i % 2}

        targets = property(lambda self: [i % 2 for i in range(len(self))])

    found = TorchDataset(Counting(range(6)))
    Counting.reads = 0
    images, labels, conditions = found.read([2, 5])
    assert Counting.reads == 2
    assert (found.kind, images[:, 0, 0, 0].tolist(), labels.tolist()) == ("values", [2, 5], [0, 1])
    assert conditions["depth"].tolist() == [[2, -2], [5, -5]]


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([], "holds no images"),
        ([("words", 0)], "the image of item 0 is a str"),
        ([{"label": 0}], 'a dict with "image"'),
        ([(torch.zeros(1, 8, 8, dtype=torch.int64), 0)], "uint8 or floats"),
    ],
)
def test_items_of_another_form_are_refused(items, named):
    with pytest.raises(DatasetError, match=named):
        TorchDataset(items)


PIXELS = torch.zeros(3, 8, 8, dtype=torch.uint8)


class Labelled(list):
    """Items with labels beside them."""

    def __init__(self, items, **attributes):
        super().__init__(items)
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([(PIXELS, 0.3), (PIXELS, 0.9)], "label of item 0 is 0.3; labels are class indices"),
        ([(PIXELS, torch.tensor([0, 1]))], "label of item 0 is tensor.*; labels are class indices"),
        ([(PIXELS, -3)], "label -3; labels are class indices"),
        ([(PIXELS, 10**9)], "label 1000000000; labels are class indices"),
        (
            Labelled([(PIXELS, 0), (PIXELS, 1)], targets=[0.3, 0.9]),
            "labels of type float64.*; labels are class indices",
        ),
        (Labelled([(PIXELS, 0), (PIXELS, 1)], targets=[[0, 1]] * 2), r"labels of type int64 and shape \[2, 2\]"),
        (Labelled([(PIXELS, 0), (PIXELS, 1)], targets=[0]), r"shape \[1\], for 2 images"),
        (Labelled([(PIXELS, 0), (PIXELS, 5)], classes=["a", "b"]), "label 5, but names of 2 classes"),
    ],
)
def test_labels_that_are_no_classes_are_refused(items, named):
    """Cut to whole numbers, they would be other classes."""
    with pytest.raises(DatasetError, match=named):
        TorchDataset(items)


def test_an_item_without_label_has_none():
    assert TorchDataset([(PIXELS, 1), (PIXELS, None)]).labels([0, 1]).tolist() == [1, -1]


def test_pictures_of_any_mode_are_what_a_viewer_shows():
    red = Image.new("RGB", (8, 8), "red")
    for mode, channels in (("P", 3), ("CMYK", 3), ("1", 3), ("L", 1), ("RGBA", 4)):
        shown = red.convert(mode)
        [image] = TorchDataset([shown]).images([0])
        assert image.shape == (channels, 8, 8)
        if mode in ("P", "CMYK"):
            assert image[:, 0, 0].tolist() == [*shown.convert("RGB").getpixel((0, 0))]


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([torch.zeros(1, 8, 8), torch.zeros(1, 4, 4)], r"item 1 is float32 \[1, 4, 4\], the first float32 \[1, 8, 8\]"),
        ([PIXELS, torch.rand(3, 8, 8)], r"item 1 is float32 \[3, 8, 8\], the first uint8 \[3, 8, 8\]"),
        ([{"image": PIXELS, "age": 1.0}, {"image": PIXELS}], "item 1 has conditions none, the first age"),
        ([{"image": PIXELS, "age": [1.0]}, {"image": PIXELS, "age": [1.0, 2.0]}], r"age: is \[2\] for one image"),
    ],
)
def test_items_unlike_the_first_are_named_when_they_are_read(items, named):
    with pytest.raises(DatasetError, match=named):
        TorchDataset(items).read([0, 1])


def test_tokens_may_be_more_or_fewer():
    items = [{"image": PIXELS, "caption": torch.ones(count, 4)} for count in (3, 5)]
    caption = TorchDataset(items).read([0, 1])[2]["caption"]
    assert caption.shape == (2, 5, 4)
    assert caption.isnan().any(dim=2).sum(dim=1).tolist() == [2, 0]


def test_the_trainer_takes_them_and_learns_the_same(tmp_path):
    def trained(name, data):
        trainer = Trainer(tiny_config(tmp_path / name, duration=24), dataset=data)
        trainer.run()
        return final_state(trainer)

    assert_same_bits(trained("theirs", pairs()[0]), trained("ours", tiny_data()))


@pytest.mark.slow
def test_values_of_any_range_are_trained_on_and_drawn(module, tmp_path):
    asked = ("train", "--data", "terrain:Heights", *QUICK, "--out", "run")
    succeed(*asked, "--duration", 64)
    succeed(*asked, "--duration", 256, "--lr", 0.012)
    codec = codec_from_json(find_snapshots("run")[-1].metadata["codec"])
    assert isinstance(codec, ValueCodec)
    assert codec.mean == pytest.approx((1500, 280), rel=0.02)
    [batch] = generate(load(find_snapshots("run")[-1].path), range(20), num_steps=8)
    values = codec.decode(batch.samples)
    assert values.dtype == torch.float32
    assert values.mean(dim=(0, 2, 3)).tolist() == pytest.approx([1500, 280], rel=0.2)
    succeed("generate", "run", "--seeds", "0-3", "--steps", 3, "--grid", "grid.png", "--device", "cpu")
    assert Image.open("grid.png").mode == "L"
    x = open_dataset("terrain:Heights").images(range(60))
    torch.testing.assert_close(codec.decode(codec.encode(x)), x, rtol=1e-5, atol=1e-3)
    assert codec.encode(x).std() == pytest.approx(0.5, rel=0.05)


def test_a_program_is_imported_only_where_the_user_names_it(module):
    asked = ("train", "--data", "terrain:Faces", *QUICK, "--duration", 128, "--out", "run")
    succeed(*asked)
    scored = ("sweep", "run", "--std", "0.1", "--samples", 8, "--steps", 2, "--device", "cpu")
    assert "terrain:Faces, a program; name it with --data" in complaint(edm2(*scored).err)
    succeed(*scored, "--data", "terrain:Faces")
    for data, named in (("terrain:nothing", "makes a int"), ("terrain:absent", "cannot be imported")):
        assert named in complaint(edm2("train", "--data", data, *QUICK, "--out", "other").err)


def test_a_codec_of_ones_own_is_one_entry(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Halved(ValueCodec):
        """Every second row and column."""

        def encode(self, data, noise=None):
            return super().encode(data)[..., ::2, ::2]

        def to_json(self):
            return {**super().to_json(), "kind": "halved"}

    stored = Halved((1.0,), (2.0,)).to_json()
    with pytest.raises(ValueError, match="unknown kind of codec 'halved'"):
        codec_from_json(stored)
    monkeypatch.setitem(CODECS, "halved", Halved)
    assert codec_from_json(stored).encode(torch.ones(1, 1, 4, 4)).shape == (1, 1, 2, 2)
    assert np.isclose(codec_from_json(stored).decode(torch.zeros(1, 1, 2, 2)), 1).all()
