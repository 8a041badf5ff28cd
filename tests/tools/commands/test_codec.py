"""Training and samples through a codec of the user's own: --codec."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from command_line import complaint, edm2, succeed, write_images
from documentation import blocks
from PIL import Image

from edm2.io.model import read_metadata
from edm2.post_hoc_ema import find_snapshots
from edm2.training.data.codecs import CODECS, codec_from_json
from edm2.training.data.own_codec import OwnCodec, own_codec

[README_CODEC] = [code for code in blocks("python") if code.startswith("# halved.py")]
OTHERS = """
import torch

class Scaled:
    def __init__(self, scale=64.0):
        self.scale = scale

    def encode(self, data):
        return data / self.scale - 2

    def decode(self, x):
        return ((x + 2) * self.scale).round().byte()

    def to_json(self):
        return {"scale": self.scale}

class Flat(Scaled):
    def encode(self, data):
        return data.float().mean(dim=1)

class Unrounded(Scaled):
    def decode(self, x):
        return x

def nothing():
    return 7
"""
SMALL = ("--channels", 8, "--batch", 16, "--workers", 0, "--rampup", 0, "--snapshot", 32, "--sample", 64)
HALVED = ("--codec", "halved:Halved")
ON_CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, programs, and a run that trains on the one through the other: twice, the second time it goes on."""
    folder = tmp_path_factory.mktemp("own")
    write_images(folder / "images", (16, 24, 3), count=40, classes=2)
    (folder / "halved.py").write_text(README_CODEC)
    (folder / "others.py").write_text(OTHERS)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for duration in (32, 64):
            asked = ("--data", "images", *SMALL, *HALVED, *ON_CPU)
            said = succeed("train", *asked, "--out", "run", "--duration", duration)
    assert "by halved:Halved: mean" in said
    assert "Resuming run at 32 of 64 images" in said
    return folder


@pytest.fixture(autouse=True)
def in_a_process_that_knows_none(folder: Path, monkeypatch) -> None:
    """In its folder, and as if nothing had been named yet."""
    monkeypatch.chdir(folder)
    for target in [kind for kind in CODECS if ":" in kind]:
        monkeypatch.delitem(CODECS, target)
    monkeypatch.delitem(sys.modules, "halved", raising=False)


def test_the_network_is_as_small_as_what_the_codec_makes_and_samples_are_as_large_as_the_images(tmp_path: Path):
    metadata = read_metadata(find_snapshots("run")[-1].path)
    assert metadata["network"]["img_resolution"] == [8, 12]
    assert metadata["codec"] == {"kind": "halved:Halved"}
    drawn = ("generate", "run", *HALVED, "--seeds", "0-3", "--steps", 2, "--out", tmp_path, *ON_CPU)
    succeed(*drawn)
    assert {Image.open(path).size for path in tmp_path.glob("*.png")} == {(24, 16)}
    assert Image.open(max(Path("run/samples").iterdir())).width > 2 * 24  # a column for each class


@pytest.mark.slow
def test_a_sweep_compares_what_it_decodes_and_names_it_in_its_commands(tmp_path: Path):
    scored = ("sweep", "run", *HALVED, "--std", "0.05,0.1", "--samples", 8, "--steps", 1, "--detector", "pixels")
    said = succeed(*scored, "--out", tmp_path, *ON_CPU)
    assert "--codec halved:Halved" in said.splitlines()[-1]


def test_no_file_names_what_is_imported():
    """One line says what is missing, of a run and of a snapshot."""
    sources = ("generate run --grid x.png", f"generate {find_snapshots('run')[-1].path} --grid x.png", "sweep run")
    for command in sources:
        said = complaint(edm2(*command.split(), *ON_CPU).err)
        assert "decodes by the program halved:Halved" in said
        assert "--codec halved:Halved" in said
    assert "halved" not in sys.modules


MISTAKES = {
    "train --data images --out new --codec halved:Other": "halved:Other: cannot be imported",
    "train --data images --out new --codec others:nothing": "makes a int, which has no encode and decode",
    "train --data images --out new --codec others:Flat": "others:Flat: encode made torch.float32 [1, 16, 24] of 1",
    "train --data images --out new --codec halved:Halved --xflip": "cannot be mirrored: leave out --xflip",
    "generate run --codec others:Unrounded --seeds 0 --grid x.png": "others:Unrounded: decode made torch.float32",
    "generate digits8 --codec halved:Halved --seeds 0 --grid x.png": "digits8: describes its codec itself",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes(command: str):
    result = edm2(*command.split(), *ON_CPU)
    assert result.code != 0
    assert MISTAKES[command] in complaint(result.err)
    assert not Path("new").exists()


def test_its_own_settings_travel_with_the_network():
    codec = own_codec("others:Scaled", scale=32.0)
    assert isinstance(codec, OwnCodec)
    stored = codec.to_json()
    assert stored == {"kind": "others:Scaled", "scale": 32.0}
    x = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    again = codec_from_json(stored)
    assert torch.equal(again.decode(again.encode(x)), x)
    assert again.encode(x).max() == 255 / 32 - 2
    assert importlib.import_module("others").Scaled().scale == 64
