"""`edm2 dataset encode` and `stats`: from photos to a network that trains on their latents, and what can be wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import check_refusal, edm2, succeed, torchrun, write_images
from dataset_files import Stopped
from PIL import Image

from edm2.datasets import encoding, moments
from edm2.tools.commands import dataset
from edm2.training import LatentCodec, open_dataset
from edm2.training.data.vae import SD_VAE

USAGE, FAILURE = 2, 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty images in two classes."""
    return write_images(tmp_path / "photos", (16, 16, 3), count=20, classes=2)


def test_encode_then_info_then_train(photos: Path, vae: Path, tmp_path: Path):
    out = tmp_path / "new" / "latents.zip"
    shown = succeed("dataset", "encode", photos, out, "--vae", vae, "--vae-range", "-1,1", "--dtype", "fp16")
    described = open_dataset(out).latents
    assert f"20 images in {out}: 4 channels of 8x8, fp16\n" in shown
    assert f"{described['mean'][3]:.4f} {described['std'][3]:9.4f}" in shown
    assert f"sigma_data {described['sigma_data']:.4f}" in shown
    lines = dict(line.split(":", 1) for line in succeed("dataset", "info", out).splitlines())
    said = {subject.strip(): value.strip() for subject, value in lines.items()}
    assert said["stored"] == f"float16, {out.stat().st_size / 1e6:.2f} MB on disk"
    assert said["VAE"] == f"{vae}, pixels from -1 to 1"
    assert said["std"] == ", ".join(f"{value:.4f}" for value in described["std"])
    assert said["classes"] == "2"
    tiny = ("--preset", "digits8", "--channels", 8, "--batch", 4, "--holdout", 0, "--workers", 0, "--device", "cpu")
    succeed("train", "--data", out, "--out", tmp_path / "run", "--duration", 8, *tiny)
    codec = json.loads((tmp_path / "run/config.json").read_text())
    assert codec["data"] == str(out)


def test_stats_of_pixels_and_of_latents(photos: Path, vae: Path, tmp_path: Path):
    shown = succeed("dataset", "stats", photos, "--no-write", "--max-images", 10)
    assert "levels 0 to 255" in shown
    assert not (photos / "dataset.json").exists()
    shown = succeed("dataset", "stats", photos)
    stored = open_dataset(photos).pixel_stats
    assert f"{stored['mean'][0]:.4f} {stored['std'][0]:9.4f}" in shown
    assert shown.endswith(f"Stored in {photos}\n")
    assert f"sigma_data:   {stored['sigma_data']:.4f}" in succeed("dataset", "info", photos)
    succeed("dataset", "encode", photos, tmp_path / "latents.zip", "--vae", vae)
    before = open_dataset(tmp_path / "latents.zip").latents
    assert "as the VAE gives them" in succeed("dataset", "stats", tmp_path / "latents.zip")
    after = open_dataset(tmp_path / "latents.zip").latents
    assert after["vae"] == before["vae"]
    assert after["mean"] == pytest.approx(before["mean"], rel=1e-12)
    assert "levels 0 to 16" in succeed("dataset", "stats", "digits", "--no-write")
    for channels, line in {  # as other tools write them, with nothing said of the VAE
        8: f"taken to be the paper's: {SD_VAE}, pixels from 0 to 1",
        32: "not usable: latents of 4",
    }.items():
        (tmp_path / str(channels)).mkdir()
        np.save(tmp_path / str(channels) / "a.npy", np.ones((channels, 4, 4), dtype=np.float32))
        assert line in succeed("dataset", "info", tmp_path / str(channels))


def test_names_and_ranges_are_those_of_the_library():
    """They stand in both places, so that help need not import torch."""
    options = {option.name: option for option in dataset.encode.params}
    assert options["vae"].default == SD_VAE
    assert dataset.PIXEL_RANGES[options["vae_range"].default] == LatentCodec().pixel_range
    assert tuple(options["dtype"].type.choices) == moments.STORED
    assert tuple(options["precision"].type.choices) == tuple(moments.DTYPES)


@pytest.mark.slow
def test_two_processes_take_up_the_parts_of_one_and_give_the_same_bytes(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped when two of the five parts were finished."""
    photos, out = write_images(tmp_path / "photos", (16, 16, 3), count=300, classes=2), tmp_path / "out.zip"
    options = ("--vae", vae, "--device", "cpu", "--batch", 32)
    succeed("dataset", "encode", photos, tmp_path / "reference.zip", *options)
    write_part, finished = encoding._write_part, []

    def stopping(*arguments) -> object:
        if len(finished) == 2:
            raise Stopped
        finished.append(write_part(*arguments))
        return finished[-1]

    monkeypatch.setattr(encoding, "_write_part", stopping)
    with pytest.raises(Stopped):
        edm2("dataset", "encode", photos, out, *options)
    assert [part.path.exists() for part in finished] == [True, True]
    assert torchrun(2, "dataset", "encode", photos, out, *options).count("300 images in") == 1
    assert out.read_bytes() == (tmp_path / "reference.zip").read_bytes()


# ----------------------------------------------------------------------------------------------------------------------
# Wrong


@pytest.fixture
def things(tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything that can be wrong, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_images(Path("fine"), (8, 8, 3), count=4)
    write_images(Path("odd"), (9, 8, 3), count=4)
    Path("there.zip").write_text("something")
    broken = write_images(Path("broken"), (8, 8, 3), count=4) / "002.png"
    broken.write_bytes(broken.read_bytes()[:50])
    shutil.copytree(vae, "vae")
    Path("empty").mkdir()
    for name, channels in (("moments", 8), ("nan", 8), ("one", 7)):
        Path(name).mkdir()
        array = np.full((channels, 4, 4), np.nan if name == "nan" else 1.0, dtype=np.float32)
        np.save(Path(name, "a.npy"), array)
    Path("flat").mkdir()
    Image.new("RGB", (4, 4), (1, 2, 3)).save("flat/a.png")
    return tmp_path


# What a user types after `edm2 dataset`, the exit code, and what the line must mention.
CASES = {
    "missing source": ("encode absent out.zip --vae vae", FAILURE, ("absent", "no such file")),
    "VAE of nothing": ("encode fine out.zip --vae empty", FAILURE, ("empty", "config.json", "give a folder")),
    "hub id, offline": ("encode fine out.zip", FAILURE, ("stabilityai/sd-vae-ft-mse", "go online", "give a folder")),
    "no such range": ("encode fine out.zip --vae-range 0,255", USAGE, ("--vae-range", "'0,255'", "'-1,1'")),
    "no such type": ("encode fine out.zip --dtype bf16", USAGE, ("--dtype", "'bf16'", "'fp16'")),
    "half precision without CUDA": (
        "encode fine out.zip --vae vae --precision fp16 --device cpu",
        FAILURE,
        ("precision=fp16", "CUDA", "choose fp32"),
    ),
    "odd size": ("encode odd out.zip --vae vae --device cpu", FAILURE, ("2x2", "9x8", "another resolution")),
    "moments": ("encode moments out.zip --vae vae", FAILURE, ("moments", "already")),
    "broken image": (
        "encode broken out.zip --vae vae",
        FAILURE,
        ("broken/002.png", "cannot be read", "replace or remove it"),
    ),
    "out is there": ("encode fine there.zip --vae vae", FAILURE, ("there.zip", "choose another name")),
    "out is no ZIP": ("encode fine out --vae vae", FAILURE, ("write out.zip",)),
    "out below a file": ("encode fine there.zip/out.zip --vae vae", FAILURE, ("out.zip", "Not a directory")),
    "the paper's statistics for another VAE": (
        "encode fine out.zip --vae vae --paper-stats",
        FAILURE,
        ("sd-vae-ft-mse", "--paper-stats"),
    ),
    "stats of nothing": ("stats absent.zip", FAILURE, ("absent.zip", "no such file")),
    "stats of digits": ("stats digits", FAILURE, ("digits", "--no-write")),
    "stats of NaN": ("stats nan", FAILURE, ("nan/a.npy", "NaN or infinity")),
    "stats of an odd number of moments": ("stats one", FAILURE, ("one/a.npy", "as many means")),
    "stats of one color": ("stats flat", FAILURE, ("flat", "channel 0 never varies")),
    "stats of a broken image": ("stats broken", FAILURE, ("broken/002.png", "cannot be read")),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_in_one_line(things: Path, name: str):
    """And no result is left, whole or half; what there was stays as it was."""
    check_refusal(*CASES[name])
    assert not Path("flat/dataset.json").exists()
