"""Whatever a user gets wrong: one line that names it and says what to do, and nothing half-written."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY, Result, complaint, edm2, half_written, succeed, write_images

from edm2.io.model import load, read_metadata, save
from edm2.networks import NetworkConfig, build_network

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


SHORT = {
    "TRAIN": " ".join(TRAIN),
    "SWEEP": "sweep @run --out out --device cpu",
    "GENERATE": "generate --grid out/grid.png --steps 1",
    "ABLATE": "ablate --data digits --out out",
    "PLAN": "plan --gpus 4 --gpu h100 --preset",
}
"""Beginnings of lines that are typed again and again."""

# What a user types (words beginning with "@" lie in the folder of wrong things), the exit code, and what the line
# must mention: the thing that is wrong, and what to do about it or what would be right.
CASES: list[tuple] = [
    ("TRAIN --data absent.zip", FAILURE, "absent.zip", "no such file", "give a folder"),
    ("TRAIN --data @empty", FAILURE, "empty", "no images", "*.png"),
    ("TRAIN --data @empty.zip", FAILURE, "empty.zip", "no images", "*.png"),
    ("TRAIN --data @no.zip", FAILURE, "no.zip", "not a ZIP file", "copy or write it anew"),
    ("TRAIN --data @not-json", FAILURE, "not-json/dataset.json", "not JSON", "line 1"),
    ("TRAIN --data @too-many", FAILURE, "too-many/dataset.json", "008.png", "unlist"),
    ("TRAIN --data @too-few", FAILURE, "too-few/dataset.json", "007.png", "list or remove"),
    ("TRAIN --data @moments", FAILURE, "moments", "4 channels", "2 channels"),
    ("train --preset edm2-small-32 --out out --data @10x10", USAGE,
     "10x10", "cannot be halved 2 times", "edm2 dataset convert", "--resolution 8|--resolution 12"),
    ("train --preset edm2-img64-s --out out --data @fine", USAGE, "edm2-img64-s", "(1, 8, 8)", "choose another"),
    ("TRAIN --data @fine --cond", USAGE, "fine", "no labels", "--cond"),
    ("TRAIN --data @fine --label-dropout 0.2", USAGE, "--label-dropout 0.2", "no labels to drop"),
    ("TRAIN --data digits --uncond --label-dropout 0.2", USAGE, "--label-dropout 0.2", "no labels to drop"),
    ("TRAIN --data digits --preset big", USAGE, "'big'", "'edm2-small-64'"),
    ("TRAIN --data digits --micro-batch 48", USAGE, "--micro-batch 48", "try --micro-batch 16"),
    ("TRAIN --data digits --duration 100", USAGE, "--duration 100", "try 128"),
    ("TRAIN --data digits --duration 1e6", USAGE, "--duration", "'1e6'", "128Ki"),
    ("TRAIN --data digits --batch 0", USAGE, "--batch 0", "at least 1"),
    ("TRAIN --data digits --channels 0", USAGE, "--channels 0", "at least 1"),
    ("TRAIN --data digits --decay inf", USAGE, "--decay", "'inf'", "write 0.01"),
    ("TRAIN --data digits --seed -1", USAGE, "--seed", "-1", "0<=x"),
    ("TRAIN --data digits --workers -1", USAGE, "--workers -1", "not be negative"),
    ("TRAIN --data digits --label-dropout 2", USAGE, "--label-dropout 2", "between 0 and 1"),
    ("TRAIN --data digits --ema 0.1,0.3", USAGE, "--ema", "0.3", "less than 0.2887"),
    ("TRAIN --data digits --holdout 1797", USAGE, "1797", "digits", "none"),
    ("TRAIN --data digits --keep-snapshots 1", USAGE, "keep-snapshots"),
    ("TRAIN --data digits --patience 5m --detect-anomaly --compile", USAGE, "leave out --compile"),
    ("TRAIN --data digits --device foo", USAGE, "--device", "'foo'", "cpu, cuda"),
    ("TRAIN --data digits --init absent.safetensors", USAGE,
     "--init", "absent.safetensors", "no such file", "included network (digits8, digits8-map)"),
    ("TRAIN --data digits --init absent/digits8", USAGE, "absent/digits8", "no such file"),
    ("TRAIN --data digits --init guided.json", USAGE, "guided.json", "start from the network that it names"),
    ("TRAIN --data digits --init digits8", FAILURE, "digits8.safetensors", "another network", "edm2 info"),
    ("TRAIN --data digits --eval-every 2", USAGE, "Give --eval"),
    ("TRAIN --data digits --eval-samples 20", USAGE, "Give --eval"),
    ("TRAIN --data digits --init @cut.safetensors", FAILURE, "cut.safetensors", "copy or write"),
    ("TRAIN --data digits --init @published.pkl", FAILURE, "published.pkl", "edm2 convert"),
    ("TRAIN --data digits --init @network.safetensors --channels 16", FAILURE,
     "network.safetensors", "another network"),
    ("TRAIN --data digits --out @notes.txt", FAILURE, "notes.txt", "is a file", "choose another"),
    ("TRAIN --data digits --out @notes.txt/run", FAILURE, "notes.txt/run", "Not a directory"),
    ("TRAIN --data digits --out @fine", FAILURE, "fine", "not empty", "choose another --out"),
    ("TRAIN --data digits --out @run --seed 1 --lr 0.5", FAILURE,
     "run", "--seed is 0 there and 1 here", "--lr is", "choose another --out"),
    ("TRAIN --data digits --out @bad-config", FAILURE, "bad-config/config.json"),
    ("TRAIN --data digits --out @old-config", FAILURE, "old-config/config.json"),
    ("reconstruct absent --std 0.1", FAILURE, "absent", "no such folder", "give a run folder"),
    ("reconstruct @empty --std 0.1", FAILURE, "empty", "no snapshots", "give a run folder"),
    ("reconstruct @notes.txt --std 0.1", USAGE, "notes.txt", "is a file"),
    ("reconstruct @one --std 0.07 --out out", FAILURE, "two snapshots or more", "found 1"),
    ("reconstruct @cut --std 0.1 --out out", FAILURE, "snapshot.safetensors", "copy or write"),
    ("reconstruct @run --std 0.3", USAGE, "--std", "0.3", "less than 0.2887"),
    ("reconstruct @run --std long", USAGE, "'long'", "write 0.1"),
    ("reconstruct @run", USAGE, "Missing option", "--std"),
    ("reconstruct @run --std 0.1 --std-for nothing*=0.05 --plan", FAILURE,
     "run", "no tensor is left for the pattern 'nothing*'"),
    ("reconstruct @run --std 0.1 --at 300", FAILURE, "300", "256 and 384"),
    ("reconstruct @run --std 0.1 --at 0", FAILURE, "0 images", "128"),
    ("reconstruct @run --std 0.1 --out @notes.txt", USAGE, "notes.txt", "is a file"),
    ("reconstruct @run --std 0.1 --memory lots", USAGE, "write 512M or 4G"),
    ("reconstruct @run --std 0.1 --memory 1K", FAILURE, "too little for 8 snapshots"),
    ("reconstruct @run --std 0.1 --threads 0", USAGE, "--threads"),
    ("reconstruct @run --std 0.1 --std-for gain", USAGE, "write PATTERN=LENGTH"),
    ("reconstruct @run --std 0.1 --std-for *=0.3", USAGE, "less than 0.2887"),
    ("sweep @no-config", FAILURE, "no-config", "config.json is missing"),
    ("sweep @empty", FAILURE, "empty", "no snapshots", "give a run folder"),
    ("sweep @run --compare @empty --out out", FAILURE, "empty: holds no sweep", "edm2 sweep"),
    ("sweep @run --compare absent --out out", FAILURE, "absent", "no such folder"),
    ("sweep @run --at 300 --out out", FAILURE, "300", "256 and 384"),
    ("sweep @run --data @10x10 --out out", FAILURE, "10x10", "(1, 10, 10)", "(1, 8, 8)"),
    ("sweep @run --data absent --out out", FAILURE, "absent", "no such file", "give a folder"),
    ("sweep @run --samples 1", USAGE, "--samples", "x>=2"),
    ("SWEEP --unlabelled-guide --guide @run --guidance 2", USAGE, "give one of them"),
    ("SWEEP --unlabelled-guide", USAGE, "give --guidance"),
    ("SWEEP --guidance 1,2", USAGE, "--guide or --unlabelled-guide"),
    ("SWEEP --unlabelled-guide --guidance 2 --guide-std 0.1", USAGE, "give its folder"),
    ("SWEEP --unlabelled-guide --guidance 2", FAILURE, "label-dropout"),
    ("SWEEP --guide @run --guide-at 100 --guidance 2", FAILURE, "nearest times are 128"),
    ("SWEEP --guidance 1,many", USAGE, "'many'"),
    ("SWEEP --search 2 --std 0.05,0.1,0.15", FAILURE, "the lists alone take 3"),
    ("SWEEP --detector inception", FAILURE, "inception"),
    ("GENERATE absent", FAILURE, "absent", "no such file"),
    ("GENERATE @empty", FAILURE, "empty", "a folder, not a file"),
    ("GENERATE @notes.txt", FAILURE, "notes.txt", "another format"),
    ("GENERATE @cut.safetensors", FAILURE, "cut.safetensors", "truncated", "copy or write"),
    ("GENERATE @network.safetensors --class 10", FAILURE, "class 10", "0, 1, 2"),
    ("GENERATE @uncond.safetensors --class 0", FAILURE, "no classes", "without labels"),
    ("GENERATE @network.safetensors --seeds 1;2", USAGE, "--seeds", "'1;2'", "0-63"),
    ("GENERATE @nan.safetensors", FAILURE, "seeds 0, 1, ", "not finite", "--precision"),
    ("GENERATE @network.safetensors --steps 0", USAGE, "--steps", "x>=1"),
    ("GENERATE @network.safetensors --class cat", FAILURE, "'cat'", "number"),
    ("GENERATE @network.safetensors --interval 1,2", USAGE, "--interval", "--guide"),
    ("generate @network.safetensors", USAGE, "--out FOLDER", "--npz FILE.npz", "--grid FILE.png"),
    ("generate @network.safetensors --grid @empty", USAGE, "--grid", "empty", "is a directory"),
    ("generate @network.safetensors --grid g.jpg", USAGE, "--grid", "g.jpg", "PNG", "write g.png"),
    ("generate @network.safetensors --out @notes.txt", USAGE, "--out", "notes.txt", "is a file"),
    ("generate --grid g.png", USAGE, "NETWORK", "--preset"),
    ("generate digits8 --latents --grid g.png", USAGE, "--latents", "--out or --npz"),
    ("generate digits8 --seeds 0-9999 --grid g.png", USAGE, "10000", "4096", "--npz"),
    ("generate digits8 --ema 0.1 --grid g.png", USAGE, "--ema chooses an average of a run"),
    ("GENERATE @run --ema 0.3", USAGE, "--ema", "less than 0.2887"),
    ("GENERATE digits8 --class 3 --balanced", USAGE, "--class", "--balanced"),
    ("GENERATE digits8 --guide digits8 --unlabelled-guide --guidance 2", USAGE, "two guides"),
    ("GENERATE digits8 --guide digits8", USAGE, "--guidance"),
    ("GENERATE digits8 --solver deis --churn 10", USAGE, "--churn needs --solver heun"),
    ("GENERATE digits8 --churn -1", USAGE, "--churn -1 must not be negative"),
    ("GENERATE digits8 --subdirs", USAGE, "--subdirs", "--out"),
    ("GENERATE digits8 --solver rk45", USAGE, "'rk45' is not one of"),
    ("GENERATE digits8 --vae folder", FAILURE, "digits8", "--vae"),
    ("GENERATE digits8 --decode-batch 0", USAGE, "--decode-batch", "x>=1"),
    ("GENERATE --preset edm2-img512-s", USAGE, "'edm2-img512-s'", "edm2-img512-s-fid"),
    ("GENERATE --preset edm2-img512-s-fid", FAILURE, "edm2-img512-s-2147483-0.130.pkl", "edm2 convert"),
    ("GENERATE --preset edm2-img64-s-fid --networks absent", FAILURE, "absent", "edm2-img64-s-1073741-0.075"),
    ("GENERATE digits8 --preset edm2-img512-s-fid --interval 1,2", USAGE, "--interval", "--guidance"),
    ("GENERATE @network.safetensors --guidance 2", USAGE, "--guidance 2", "--guide"),
    ("GENERATE @network.safetensors --guidance 2 --guide @rgb.safetensors", FAILURE,
     "rgb.safetensors", "cannot guide", "network.safetensors"),
    ("GENERATE @network.safetensors --guidance 2 --guide @three.safetensors", FAILURE,
     "three.safetensors", "cannot guide", "network.safetensors"),
    ("info absent", FAILURE, "absent", "no such file"),
    ("info @notes.txt", FAILURE, "notes.txt", "another format"),
    ("info @cut.safetensors", FAILURE, "cut.safetensors", "copy or write"),
    ("info @bad-config", FAILURE, "bad-config/config.json"),
    ("info @empty", FAILURE, "empty", "no images"),
    ("info absent.zip", FAILURE, "absent.zip", "no such file"),
    ("ablate --data digits --configs A,G --out out --report", FAILURE,
     "out", "none of these runs is finished", "leave --report out"),
    ("ABLATE", USAGE, "give --configs, --weightings or --vary"),
    ("ABLATE --configs A,H", USAGE, "'H'"),
    ("ABLATE --configs A,...", USAGE, "two letters"),
    ("ABLATE --weightings min_snr", USAGE, "min_snr"),
    ("ABLATE --vary momentum=1,2", USAGE, "--momentum"),
    ("ABLATE --vary decay", USAGE, "decay=150,600,2400"),
    ("ABLATE --vary decay=soon", USAGE, "soon"),
    ("ABLATE --vary xflip=2", USAGE, "2"),
    ("ABLATE --vary seed=1,2", USAGE, "--seeds"),
    ("ABLATE --configs G quickly", USAGE, "quickly"),
    ("ABLATE --configs G --share 3/2", USAGE, "3/2"),
    ("ABLATE --configs G --fixed 0.3", USAGE, "--fixed 0.3"),
    ("ABLATE --configs G -- --gamma 5", USAGE, "gamma"),
    ("ABLATE --configs G -- --momentum 1", USAGE, "--momentum"),
    ("ABLATE --configs G -- --seed 1", USAGE, "--seeds"),
    ("ABLATE --configs G -- --out x", USAGE, "--out"),
    ("ABLATE --configs G -- --eval-samples 50", USAGE, "--eval-samples 50", "--samples decides"),
    ("ABLATE --configs G -- --max-time 1h", USAGE, "--max-time", "the same command goes on"),
    ("plan --preset nonsense --gpus 4 --gpu h100", USAGE, "nonsense"),
    ("plan --preset edm2-img512-s --gpus 4 --gpu h1000", USAGE, "h1000", "'h100'"),
    ("plan --preset edm2-img512-s --gpus 4", USAGE, "--gpu", "h100", "--memory and --peak"),
    ("plan --preset edm2-img512-s --gpus 4 --peak 100", USAGE, "--memory and --peak"),
    ("plan --preset edm2-img512-s --gpus 8 --per-node 3 --gpu h100", USAGE, "nodes of 3", "give --per-node 2, or"),
    ("PLAN edm2-img512-s --gpus 0", USAGE, "--gpus"),
    ("PLAN edm2-img512-s --gpus 12", USAGE, "12 GPUs do not fill nodes of 8", "give --per-node 6, or"),
    ("PLAN edm2-img512-s --gpus 24", USAGE, "2048 is not a multiple of the 24 processes"),
    ("PLAN edm2-img512-s --keep-snapshots 1", USAGE, "--keep-snapshots", "x>=2"),
    ("PLAN edm2-img512-s --config H", USAGE, "'H' is not one of"),
    ("PLAN edm2-img512-s --micro-batch 3", USAGE, "micro_batch=3", "try"),
    ("PLAN edm2-img512-s --shape 3x64x64", USAGE, "--shape 3x64x64", "(4, 64, 64)"),
    ("PLAN edm2-img512-s --memory -1", USAGE, "--memory must be positive"),
    ("PLAN edm2-img512-s --efficiency 1.5", USAGE, "1.5", "0.45"),
    ("PLAN edm2-img512-s --efficiency nowhere.json", FAILURE, "nowhere.json"),
    ("PLAN edm2-img512-s --channels 200", USAGE, "attention heads"),
    ("PLAN edm2-small-64", USAGE, "edm2-small-64", "--shape"),
    ("PLAN edm2-small-64 --shape 64x64", USAGE, "64x64", "3x64x64"),
    ("PLAN edm2-small-64 --shape 3x63x64", USAGE, "63x64", "halved"),
    ("PLAN edm2-small-64 --data digits --shape 1x8x8", USAGE, "--data", "--shape"),
    ("PLAN edm2-img512-s --images 0", USAGE, "--images must be positive"),
    ("demo --out @notes.txt", USAGE, "notes.txt", "is a file"),
]  # fmt: skip


def typed(line: str, things: Path) -> list[str]:
    """The words of a case."""
    for name, words in SHORT.items():
        line = re.sub(rf"^{name}\b", words, line)
    return [str(things / word[1:]) if word.startswith("@") else word for word in line.split()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_mistake_gets_one_line_and_leaves_nothing(case: tuple, things: Path, tmp_path: Path, monkeypatch):
    line, code, *mentions = case
    monkeypatch.chdir(tmp_path)
    before = contents(things)
    result = edm2(*typed(line, things))
    message = complaint(result.err)
    for mention in mentions:
        assert any(wording in message for wording in mention.split("|")), f"{mention!r} is not in {message!r}"
    assert result.code == code, message
    assert contents(things) == before
    assert not list(tmp_path.iterdir())


def test_a_slash_behind_a_folder_changes_nothing(things: Path):
    assert complaint(edm2("info", f"{things / 'empty'}/").err) == complaint(edm2("info", things / "empty").err)


# ------------------------------------------------------------------------------------ noticed only while it is running


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_of_another_size_stops_the_run_by_name(workers: int, things: Path, tmp_path: Path):
    """Opening a dataset reads the first image only; files that the run wrote until then are complete.

    Without standardization, for which all images would be read at the start.
    """
    out = tmp_path / "out"
    result = edm2(*TRAIN[:-1], out, "--data", things / "two-sizes", "--workers", workers, "--no-standardize")
    message = complaint(result.err)
    assert result.code == FAILURE
    assert all(mention in message for mention in ("two-sizes/b/", "16x8", "8x8")), message
    assert not half_written(out)
    assert "0 of 128 images" in succeed("info", out)


# -------------------------------------------------------------------------------------------------- damaged run folders


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def go_on(run: Path) -> Result:
    """Try to train for longer."""
    return edm2("train", *TINY, "--data", "digits", "--duration", 1024, "--out", run)


def test_a_truncated_checkpoint_is_named_and_the_remedy_works(run: Path):
    checkpoint = run / "checkpoints/000000000512"
    [file] = checkpoint.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    message = complaint(go_on(run).err)
    assert str(checkpoint) in message
    assert "delete this folder" in message
    shutil.rmtree(checkpoint)
    assert "Done: 1,024 images" in go_on(run).out


@pytest.mark.parametrize("line", [b"{]\n", b"7\n", b"{}\n", b"\xff\n"], ids=["syntax", "number", "empty", "binary"])
def test_a_damaged_line_of_stats_is_named(line: bytes, run: Path):
    """Lines after it must not be thrown away in silence, as is the unfinished last line of a killed run."""
    stats = run / "stats.jsonl"
    lines = stats.read_bytes().splitlines(keepends=True)
    stats.write_bytes(damaged := b"".join([*lines[:2], line, *lines[2:]]))
    result = go_on(run)
    assert result.code == FAILURE
    assert "stats.jsonl" in complaint(result.err)
    assert stats.read_bytes() == damaged
    assert "WARNING:      1 damaged lines in stats.jsonl" in succeed("info", run)


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
