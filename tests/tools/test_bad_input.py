"""Whatever a user gets wrong: one line that names it and says what to do, and nothing half-written."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import TINY, complaint, edm2, half_written, succeed, write_images

from edm2.io.model import load, read_metadata, save
from edm2.networks import NetworkConfig, build_network
from edm2.training import DenoisingLoss
from edm2.training.run.logging import read_stats

USAGE, FAILURE = 2, 1
TRAIN = ("train", *TINY, "--duration", "128", "--out", "out")


def images(folder: Path) -> Path:
    """Eight images that are fine."""
    return write_images(folder, (8, 8), count=8)


def with_labels(folder: Path, labels: str) -> None:
    (images(folder) / "dataset.json").write_text(labels)


def two_sizes(folder: Path) -> None:
    write_images(folder / "a", (8, 8), count=8)
    write_images(folder / "b", (16, 8), count=8)


def broken_image(folder: Path) -> None:
    path = images(folder) / "003.png"
    path.write_bytes(path.read_bytes()[:50])


def moments(folder: Path) -> None:
    folder.mkdir()
    for i in range(8):
        np.save(folder / f"{i}.npy", np.ones((2, 8, 8), dtype=np.float32))


def truncate(source: Path, target: Path) -> None:
    data = source.read_bytes()
    target.write_bytes(data[: len(data) // 2])


def other_networks(network: Path, folder: Path) -> None:
    """Networks that are fine, but for RGB images, for three classes, and for none; and one that draws NaN."""
    broken = load(network)
    torch.nn.init.constant_(broken.unet.out_gain, torch.nan)
    save(broken, folder / "nan.safetensors", {"codec": read_metadata(network)["codec"]})
    config = load(network).config.to_json()
    for name, change in {"rgb": {"img_channels": 3}, "three": {"label_dim": 3}, "uncond": {"label_dim": 0}}.items():
        net = build_network(NetworkConfig.from_json(config | change))
        metadata = read_metadata(network)
        metadata.pop("network")
        save(net, folder / f"{name}.safetensors", metadata)


@pytest.fixture(scope="session")
def things(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything that can be wrong; nothing in it changes."""
    folder = tmp_path_factory.mktemp("things")
    (folder / "empty").mkdir()
    (folder / "empty.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "no.zip").write_text("not a ZIP file")
    (folder / "notes.txt").write_text("not a network")
    (folder / "published.pkl").write_bytes(pickle.dumps("not read at all"))
    images(folder / "fine")
    with_labels(folder / "not-json", "{")
    with_labels(folder / "too-many", json.dumps({"labels": [[f"{i:03}.png", 0] for i in range(9)]}))
    with_labels(folder / "too-few", json.dumps({"labels": [[f"{i:03}.png", 0] for i in range(7)]}))
    two_sizes(folder / "two-sizes")
    broken_image(folder / "broken-image")
    write_images(folder / "10x10", (10, 10), count=8)
    moments(folder / "moments")
    network = tiny_run / "raw-weights.safetensors"
    shutil.copy(network, folder / "network.safetensors")
    truncate(network, folder / "cut.safetensors")
    other_networks(network, folder)
    (folder / "one").mkdir()
    shutil.copy(next((tiny_run / "snapshots").iterdir()), folder / "one")
    (folder / "cut").mkdir()
    truncate(next((tiny_run / "snapshots").iterdir()), folder / "cut/snapshot.safetensors")
    shutil.copytree(tiny_run, folder / "run")
    shutil.copytree(tiny_run, folder / "bad-config").joinpath("config.json").write_text('{"data": "digits"')
    shutil.copytree(tiny_run, folder / "old-config").joinpath("config.json").write_text('{"data": "digits"}')
    shutil.copytree(tiny_run, folder / "no-config").joinpath("config.json").unlink()
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


# What a user types (words beginning with "@" lie in the folder of wrong things), the exit code, and what the line
# must mention: the thing that is wrong, and what to do about it or what would be right.
CASES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "missing dataset": ("TRAIN --data absent.zip", FAILURE, ("absent.zip", "no such file", "give a folder")),
    "empty folder": ("TRAIN --data @empty", FAILURE, ("empty", "no images", "*.png")),
    "empty ZIP": ("TRAIN --data @empty.zip", FAILURE, ("empty.zip", "no images", "*.png")),
    "not a ZIP": ("TRAIN --data @no.zip", FAILURE, ("no.zip", "not a ZIP file", "copy or write it anew")),
    "labels not JSON": ("TRAIN --data @not-json", FAILURE, ("not-json/dataset.json", "not JSON", "line 1")),
    "labels of missing files": ("TRAIN --data @too-many", FAILURE, ("too-many/dataset.json", "008.png", "unlist")),
    "files without labels": ("TRAIN --data @too-few", FAILURE, ("too-few/dataset.json", "007.png", "list or remove")),
    "latents of another VAE": ("TRAIN --data @moments", FAILURE, ("moments", "4 channels", "2 channels")),
    "indivisible images": (
        "train --preset edm2-small-32 --out out --data @10x10",
        USAGE,
        ("10x10", "cannot be halved 2 times", "edm2 dataset convert", "--resolution 8|--resolution 12"),
    ),
    "images too small for a preset": (
        "train --preset edm2-img64-s --out out --data @fine",
        USAGE,
        ("edm2-img64-s", "(1, 8, 8)", "choose another"),
    ),
    "no labels to train with": ("TRAIN --data @fine --cond", USAGE, ("fine", "no labels", "--cond")),
    "unknown preset": ("TRAIN --data digits --preset big", USAGE, ("'big'", "'edm2-small-64'")),
    "indivisible batch": ("TRAIN --data digits --micro-batch 48", USAGE, ("--micro-batch 48", "try --micro-batch 16")),
    "indivisible duration": ("TRAIN --data digits --duration 100", USAGE, ("--duration 100", "try 128")),
    "bad image count": ("TRAIN --data digits --duration 1e6", USAGE, ("--duration", "'1e6'", "128Ki")),
    "no batch": ("TRAIN --data digits --batch 0", USAGE, ("--batch 0", "at least 1")),
    "no width": ("TRAIN --data digits --channels 0", USAGE, ("--channels 0", "at least 1")),
    "infinite decay": ("TRAIN --data digits --decay inf", USAGE, ("--decay", "'inf'", "write 0.01")),
    "negative seed": ("TRAIN --data digits --seed -1", USAGE, ("--seed", "-1", "0<=x")),
    "negative workers": ("TRAIN --data digits --workers -1", USAGE, ("--workers -1", "not be negative")),
    "label dropout above 1": ("TRAIN --data digits --label-dropout 2", USAGE, ("--label-dropout 2", "between 0 and 1")),
    "EMA length to train": ("TRAIN --data digits --ema 0.1,0.3", USAGE, ("--ema", "0.3", "less than 0.2887")),
    "everything held out": ("TRAIN --data digits --holdout 1797", USAGE, ("1797", "digits", "none")),
    "unknown device": ("TRAIN --data digits --device foo", USAGE, ("--device", "'foo'", "cpu, cuda")),
    "init missing": (
        "TRAIN --data digits --init absent.safetensors",
        USAGE,
        ("--init", "absent.safetensors", "no such file", "included network (digits8)"),
    ),
    "init missing in a folder": (
        "TRAIN --data digits --init absent/digits8",
        USAGE,
        ("absent/digits8", "no such file"),
    ),
    "init of another network that is included": (
        "TRAIN --data digits --init digits8",
        FAILURE,
        ("digits8.safetensors", "another network"),
    ),
    "init truncated": ("TRAIN --data digits --init @cut.safetensors", FAILURE, ("cut.safetensors", "copy or write")),
    "init is published": ("TRAIN --data digits --init @published.pkl", FAILURE, ("published.pkl", "edm2 convert")),
    "init of another network": (
        "TRAIN --data digits --init @network.safetensors --channels 16",
        FAILURE,
        ("network.safetensors", "another network"),
    ),
    "out is a file": ("TRAIN --data digits --out @notes.txt", FAILURE, ("notes.txt", "is a file", "choose another")),
    "out below a file": ("TRAIN --data digits --out @notes.txt/run", FAILURE, ("notes.txt/run", "Not a directory")),
    "out holds something else": (
        "TRAIN --data digits --out @fine",
        FAILURE,
        ("fine", "not empty", "choose another --out"),
    ),
    "out is another run": (
        "TRAIN --data digits --out @run --seed 1 --lr 0.5",
        FAILURE,
        ("run", "--seed is 0 there and 1 here", "--lr is", "choose another --out"),
    ),
    "out has a damaged config": ("TRAIN --data digits --out @bad-config", FAILURE, ("bad-config/config.json",)),
    "out has an incomplete config": ("TRAIN --data digits --out @old-config", FAILURE, ("old-config/config.json",)),
    "no folder of snapshots": (
        "reconstruct absent --std 0.1",
        FAILURE,
        ("absent", "no such folder", "give a run folder"),
    ),
    "no snapshots": ("reconstruct @empty --std 0.1", FAILURE, ("empty", "no snapshots", "give a run folder")),
    "snapshots in a file": ("reconstruct @notes.txt --std 0.1", USAGE, ("notes.txt", "is a file")),
    "one snapshot": ("reconstruct @one --std 0.1 --out out", FAILURE, ("two snapshots or more", "found 1")),
    "truncated snapshot": ("reconstruct @cut --std 0.1 --out out", FAILURE, ("snapshot.safetensors", "copy or write")),
    "EMA length too long": ("reconstruct @run --std 0.3", USAGE, ("--std", "0.3", "less than 0.2887")),
    "EMA length no number": ("reconstruct @run --std long", USAGE, ("'long'", "write 0.1")),
    "no EMA length": ("reconstruct @run", USAGE, ("Missing option", "--std")),
    "a pattern that fits no tensor": (
        "reconstruct @run --std 0.1 --std-for nothing*=0.05 --plan",
        FAILURE,
        ("run", "no tensor is left for the pattern 'nothing*'"),
    ),
    "a time without snapshots": ("reconstruct @run --std 0.1 --at 300", FAILURE, ("300", "256 and 384")),
    "a time before all snapshots": ("reconstruct @run --std 0.1 --at 0", FAILURE, ("0 images", "128")),
    "reconstructing into a file": ("reconstruct @run --std 0.1 --out @notes.txt", USAGE, ("notes.txt", "is a file")),
    "sweep of no run": ("sweep @no-config", FAILURE, ("no-config", "config.json is missing")),
    "sweep of an empty folder": ("sweep @empty", FAILURE, ("empty", "no snapshots", "give a run folder")),
    "sweep beside no sweep": (
        "sweep @run --compare @empty --out out",
        FAILURE,
        ("empty: holds no sweep", "edm2 sweep"),
    ),
    "sweep beside nothing": ("sweep @run --compare absent --out out", FAILURE, ("absent", "no such folder")),
    "sweep at no time": ("sweep @run --at 300 --out out", FAILURE, ("300", "256 and 384")),
    "sweep with other images": ("sweep @run --data @10x10 --out out", FAILURE, ("10x10", "(1, 10, 10)", "(1, 8, 8)")),
    "sweep without images": (
        "sweep @run --data absent --out out",
        FAILURE,
        ("absent", "no such file", "give a folder"),
    ),
    "sweep of one sample": ("sweep @run --samples 1", USAGE, ("--samples", "x>=2")),
    "unknown network": ("GENERATE absent", FAILURE, ("absent", "no such file")),
    "network is a folder": ("GENERATE @empty", FAILURE, ("empty", "a folder, not a file")),
    "network is a run": ("GENERATE @run", FAILURE, ("run: is a run", "edm2 reconstruct", "run --std 0.10")),
    "network of another format": ("GENERATE @notes.txt", FAILURE, ("notes.txt", "another format")),
    "truncated network": ("GENERATE @cut.safetensors", FAILURE, ("cut.safetensors", "truncated", "copy or write")),
    "class too high": ("GENERATE @network.safetensors --class 10", FAILURE, ("class 10", "classes 0 to 9")),
    "class of a network without": ("GENERATE @uncond.safetensors --class 0", FAILURE, ("no classes", "without labels")),
    "bad seeds": ("GENERATE @network.safetensors --seeds 1;2", USAGE, ("--seeds", "'1;2'", "0-63")),
    "broken weights": ("GENERATE @nan.safetensors", FAILURE, ("seeds 0, 1, ", "not finite", "--precision")),
    "no steps": ("GENERATE @network.safetensors --steps 0", USAGE, ("--steps", "x>=1")),
    "class of no such name": ("GENERATE @network.safetensors --class cat", FAILURE, ("'cat'", "number")),
    "interval without guidance": ("GENERATE @network.safetensors --interval 1,2", USAGE, ("--interval", "--guide")),
    "nowhere to put images": (
        "generate @network.safetensors",
        USAGE,
        ("--out FOLDER", "--npz FILE.npz", "--grid FILE.png"),
    ),
    "grid is a folder": ("generate @network.safetensors --grid @empty", USAGE, ("--grid", "empty", "is a directory")),
    "grid in another format": (
        "generate @network.safetensors --grid g.jpg",
        USAGE,
        ("--grid", "g.jpg", "PNG", "write g.png"),
    ),
    "images into a file": (
        "generate @network.safetensors --out @notes.txt",
        USAGE,
        ("--out", "notes.txt", "is a file"),
    ),
    "guidance without a guide": ("GENERATE @network.safetensors --guidance 2", USAGE, ("--guidance 2", "--guide")),
    "guide for other images": (
        "GENERATE @network.safetensors --guidance 2 --guide @rgb.safetensors",
        FAILURE,
        ("rgb.safetensors", "cannot guide", "network.safetensors"),
    ),
    "guide for other classes": (
        "GENERATE @network.safetensors --guidance 2 --guide @three.safetensors",
        FAILURE,
        ("three.safetensors", "cannot guide", "network.safetensors"),
    ),
    "info of nothing": ("info absent", FAILURE, ("absent", "no such file")),
    "info of another format": ("info @notes.txt", FAILURE, ("notes.txt", "another format")),
    "info of a truncated snapshot": ("info @cut.safetensors", FAILURE, ("cut.safetensors", "copy or write")),
    "info of a damaged run": ("info @bad-config", FAILURE, ("bad-config/config.json",)),
    "info of an empty folder": ("info @empty", FAILURE, ("empty", "no images")),
    "info of an absent ZIP": ("info absent.zip", FAILURE, ("absent.zip", "no such file")),
    "report of nothing": (
        "ablate --data digits --configs A,G --out out --report",
        FAILURE,
        ("out", "none of these runs is finished", "leave --report out"),
    ),
    "demo into a file": ("demo --out @notes.txt", USAGE, ("notes.txt", "is a file")),
}


def typed(line: str, things: Path) -> list[str]:
    """The words of a case."""
    line = line.replace("TRAIN", " ".join(TRAIN)).replace("GENERATE", "generate --grid out/grid.png --steps 1")
    return [str(things / word[1:]) if word.startswith("@") else word for word in line.split()]


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_gets_one_line_and_leaves_nothing(name: str, things: Path, tmp_path: Path, monkeypatch):
    line, code, mentions = CASES[name]
    monkeypatch.chdir(tmp_path)
    before = contents(things)
    result = edm2(*typed(line, things))
    message = complaint(result.err)
    for mention in mentions:
        assert any(wording in message for wording in mention.split("|")), f"{mention!r} is not in {message!r}"
    assert result.code == code, message
    assert contents(things) == before
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ noticed only while it is running


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("data", "mentions"),
    [("two-sizes", ("two-sizes/b/", "16x8", "8x8")), ("broken-image", ("broken-image/003.png", "cannot be read"))],
)
def test_an_unusable_image_stops_the_run_by_name(
    data: str, mentions: tuple, workers: int, things: Path, tmp_path: Path
):
    """Opening a dataset reads the first image only; files that the run wrote until then are complete.

    Without standardization, for which all images would be read at the start.
    """
    out = tmp_path / "out"
    result = edm2(*TRAIN[:-1], out, "--data", things / data, "--workers", workers, "--no-standardize")
    message = complaint(result.err)
    assert result.code == FAILURE
    assert all(mention in message for mention in mentions), message
    assert not half_written(out)
    assert "0 of 128 images" in succeed("info", out)


def test_a_loss_that_is_never_finite_stops_the_run(tmp_path: Path, monkeypatch):
    loss = DenoisingLoss.__call__
    monkeypatch.setattr(DenoisingLoss, "__call__", lambda *args, **options: loss(*args, **options) * torch.nan)
    out = tmp_path / "out"
    result = edm2("train", *TINY, "--data", "digits", "--batch", 2, "--duration", 2048, "--lr", 0.5, "--out", out)
    message = complaint(result.err)
    assert result.code == FAILURE
    assert all(part in message for part in (str(out), "64 steps", "non-finite", "lower the learning rate (0.5)")), (
        message
    )
    assert read_stats(out / "stats.jsonl")[-1]["images_seen"] <= 128 < 2048
    assert not half_written(out)


# -------------------------------------------------------------------------------------------------- damaged run folders


@pytest.fixture
def damaged(tiny_run: Path, tmp_path: Path) -> Callable[[str, bytes], SimpleNamespace]:
    """Overwrites one file in a copy of the shared run, and tries to go on with it."""
    run = shutil.copytree(tiny_run, tmp_path / "run")

    def overwrite_and_resume(file: str, data: bytes) -> SimpleNamespace:
        (run / file).write_bytes(data)
        before = contents(run)
        result = edm2("train", *TINY, "--data", "digits", "--duration", 1024, "--out", run)
        return SimpleNamespace(run=run, result=result, before=before)

    return overwrite_and_resume


def test_a_truncated_checkpoint_is_named(damaged, tiny_run: Path):
    [file] = (tiny_run / "checkpoints" / "000000000512").glob("*.safetensors")
    name = str(file.relative_to(tiny_run))
    left = damaged(name, (tiny_run / name).read_bytes()[:1000])
    message = complaint(left.result.err)
    assert left.result.code == FAILURE
    assert str(left.run / "checkpoints/000000000512") in message
    assert "delete this folder" in message
    shutil.rmtree(left.run / "checkpoints/000000000512")
    assert "Done: 1,024 images" in succeed("train", *TINY, "--data", "digits", "--duration", 1024, "--out", left.run), (
        "the remedy works"
    )


def test_a_checkpoint_never_executes_anything(damaged, tmp_path: Path, monkeypatch):
    class Hostile:
        def __reduce__(self) -> tuple:
            return os.system, ("touch PWNED",)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/checkpoints/000000000512/__0_0.distcp").touch()  # as of version 0.1
    left = damaged("checkpoints/000000000512/.metadata", pickle.dumps(Hostile()))
    assert left.result.code == FAILURE
    assert "not allowed" in complaint(left.result.err)
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize("state", [b"{", b"[]", b"\xff", b"{}"])
def test_a_damaged_state_of_a_checkpoint_is_named(state: bytes, damaged):
    left = damaged("checkpoints/000000000512/state.json", state)
    assert left.result.code == FAILURE
    assert str(left.run / "checkpoints/000000000512") in complaint(left.result.err)


@pytest.mark.parametrize("line", [b"{]\n", b"7\n", b"{}\n", b"\xff\n"], ids=["syntax", "number", "empty", "binary"])
def test_a_damaged_line_of_stats_is_named(line: bytes, damaged, tiny_run: Path):
    """Lines after it must not be thrown away in silence, as is the unfinished last line of a killed run."""
    lines = (tiny_run / "stats.jsonl").read_bytes().splitlines(keepends=True)
    left = damaged("stats.jsonl", b"".join([*lines[:2], line, *lines[2:]]))
    assert left.result.code == FAILURE
    assert "stats.jsonl" in complaint(left.result.err)
    assert (left.run / "stats.jsonl").read_bytes() == left.before["stats.jsonl"]
    assert "stats.jsonl" in complaint(edm2("info", left.run).err)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_place(tmp_path: Path):
    tmp_path.chmod(0o500)
    result = edm2(*TRAIN[:-1], tmp_path / "out", "--data", "digits")
    tmp_path.chmod(0o700)
    assert result.code == FAILURE
    assert str(tmp_path / "out") in complaint(result.err)
    assert not list(tmp_path.iterdir())


def test_a_full_disk(things: Path, tmp_path: Path, monkeypatch):
    """The operating system's error arrives as one line, and the unfinished file is gone."""

    def no_space(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "weights")

    monkeypatch.setattr("edm2.post_hoc_ema.tensor_files.SafetensorsWriter.write", no_space)
    result = edm2("reconstruct", things / "run", "--std", "0.1", "--out", tmp_path / "out")
    assert result.code == FAILURE
    assert "No space left on device" in complaint(result.err)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
