"""The way of a user from images to pictures, with a network so small that a step takes milliseconds."""

import dataclasses
import importlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY, complaint, edm2, half_written, succeed, write_images
from PIL import Image
from safetensors.torch import load_file

from edm2.io.model import load, read_metadata
from edm2.networks import normalize
from edm2.planning.presets import PRESETS
from edm2.post_hoc_ema import find_snapshots, snapshot_name
from edm2.training.run.logging import Monitor, read_stats

ROOT = Path(__file__).resolve().parent.parent.parent
TIMES = (128, 256, 384, 512)
LENGTHS = (0.05, 0.10)
TIMING = {"seconds", "images_per_second", "peak_memory_gb"}


def train(out: Path, *options: object, data: object = "digits", duration: int = 512) -> Path:
    """Train; the run folder."""
    succeed("train", "--data", data, "--duration", duration, *TINY, "--out", out, *options)
    return out


def timeless_stats(run: Path) -> list[dict]:
    """stats.jsonl without what depends on the machine's mood."""
    return [{k: v for k, v in record.items() if k not in TIMING} for record in read_stats(run / "stats.jsonl")]


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs left the same numbers, to the bit: snapshots, raw weights, losses and sample grids."""
    snapshots = sorted(path.name for path in (a / "snapshots").glob("*.safetensors"))
    assert snapshots == sorted(path.name for path in (b / "snapshots").glob("*.safetensors"))
    for name in [*(f"snapshots/{name}" for name in snapshots), "raw-weights.safetensors"]:
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            assert torch.equal(tensor, right[key]), f"{name}: {key}"
    assert timeless_stats(a) == timeless_stats(b)
    samples = sorted(path.name for path in (a / "samples").iterdir())
    assert samples == sorted(path.name for path in (b / "samples").iterdir())
    for name in samples:
        assert (a / "samples" / name).read_bytes() == (b / "samples" / name).read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but TensorBoard's, of which each start opens a new one."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pixels(path: Path) -> np.ndarray:
    """A PNG file as signed integers, so that differences do not wrap around."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image).astype(int)


# ---------------------------------------------------------------------------------------------------- a run's folder


def test_a_run_leaves_what_its_help_promises(tiny_run: Path):
    """Configuration, snapshots, the last two checkpoints, records in order, and pictures of every class."""
    config = json.loads((tiny_run / "config.json").read_text())
    assert (config["data"], config["duration"], config["preset"]) == ("digits", 512, "digits8")
    assert {path.name for path in (tiny_run / "snapshots").iterdir()} == {
        snapshot_name(time, length) for time in TIMES for length in LENGTHS
    }
    assert sorted(path.name for path in (tiny_run / "checkpoints").iterdir()) == ["000000000384", "000000000512"]
    records = read_stats(tiny_run / "stats.jsonl")
    assert [record["images_seen"] for record in records] == list(range(64, 513, 64))
    assert all(np.isfinite([record["loss"], record["grad_norm"], record["lr"]]).all() for record in records)
    grids = sorted((tiny_run / "samples").iterdir())  # early in a run there are more of them
    assert [path.name for path in grids] == [f"samples-{time:012}.png" for time in (64, 128, 256, 512)]
    for grid in grids:
        height, width = pixels(grid).shape
        assert width > max(10 * 8, height), "ten columns of enlarged images"
    assert not half_written(tiny_run)


# ------------------------------------------------------------------------------------------------ stopping, resuming


def test_a_longer_duration_continues_a_finished_run_and_the_same_leaves_it_alone(tiny_run: Path, tmp_path: Path):
    out = train(tmp_path / "run", duration=256)
    assert_same_run(train(out), tiny_run)
    before = contents(out)
    assert "Done: 512 images" in succeed("train", "--data", "digits", "--duration", 512, *TINY, "--out", out)
    assert contents(out) == before


def test_ctrl_c_finishes_the_step_and_the_same_command_goes_on(tiny_run: Path, tmp_path: Path, monkeypatch):
    def report_and_interrupt(monitor: Monitor, record: dict) -> None:
        report(monitor, record)
        if record["images_seen"] == 192:  # between checkpoints
            os.kill(os.getpid(), signal.SIGINT)

    report, handler = Monitor.report, signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "report", report_and_interrupt)
        stopped = edm2("train", "--data", "digits", "--duration", 512, *TINY, "--out", tmp_path / "run")
    assert stopped.code == 130, "what shells expect of an interrupted command"
    assert "run the same command again" in stopped.err
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in sorted((tmp_path / "run/checkpoints").iterdir())][-1] in (
        "000000000192",
        "000000000256",
    )
    assert_same_run(train(tmp_path / "run"), tiny_run)


def test_an_unfinished_last_line_of_stats_does_not_keep_a_run_from_going_on(tiny_run: Path, tmp_path: Path):
    out = train(tmp_path / "run", duration=256)
    with open(out / "stats.jsonl", "a") as file:
        file.write('{"images_seen": 320, "lo')
    assert "256 of 256 images (100%)" in succeed("info", out)
    assert_same_run(train(out), tiny_run)


# ---------------------------------------------------------------------------------------------------- other trainings


def test_held_out_images_are_measured_and_not_trained_on(tmp_path: Path):
    run = train(tmp_path / "run", "--holdout", 100, duration=256)
    last = read_stats(run / "stats.jsonl")[-1]
    assert last["images_seen"] == 256
    for name in ("holdout", "train"):
        assert len(last[f"{name}_losses"]) == len(last["sigmas"])
        assert 0 < last[f"{name}_loss"] == pytest.approx(np.mean(last[f"{name}_losses"]))
    assert last["holdout_loss"] != last["train_loss"], "other images"
    assert read_metadata(run / "raw-weights.safetensors")["data"]["num_images"] == 1797 - 100


@pytest.mark.parametrize("classes", [10, 3])
def test_fine_tuning_keeps_everything_but_other_classes(network: Path, tmp_path: Path, classes: int):
    """Training keeps rows normalized, and rounds while it does so; Adam moves the rest by at most the learning rate."""
    data = "digits" if classes == 10 else write_images(tmp_path / "images", (8, 8), classes=classes)
    run = train(tmp_path / "run", "--init", network, "--lr", 1e-12, data=data, duration=64)
    before, after = load_file(network), load_file(run / "raw-weights.safetensors")
    assert before["unet.out_gain"] != 0, "it starts at zero, so it shows who has been trained"
    assert load(run / "raw-weights.safetensors").config.label_dim == classes
    for name, tensor in before.items():
        if after[name].shape == tensor.shape:
            expected, actual = (normalize(x) if x.ndim > 1 else x for x in (tensor, after[name]))
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("shape", "classes"), [((8, 8), 0), ((8, 8, 3), 2), ((16, 16, 3), 0), ((8, 12, 3), 3)], ids=str
)
def test_folders_of_images(shape: tuple[int, ...], classes: int, tmp_path: Path):
    """Gray or RGB, square or not, with classes or without: trained, described, and drawn in the same size."""
    data = write_images(tmp_path / "images", shape, classes=classes)
    assert f"{shape[0]}x{shape[1]}" in succeed("info", data)
    run = train(tmp_path / "run", data=data, duration=128)
    succeed("generate", run / "raw-weights.safetensors", "--seeds", "0-2", "--steps", 2, "--out", tmp_path / "drawn")
    assert pixels(tmp_path / "drawn/000002.png").shape == shape


# ------------------------------------------------------------------------------------------------------- reconstruct


def test_reconstructing_a_stored_length_returns_what_was_stored(tiny_run: Path, tmp_path: Path):
    """Float32 sums of eight snapshots with coefficients that solve to 0 and 1 up to rounding."""
    shown = succeed("reconstruct", tiny_run, "--std", "0.05,0.10", "--out", tmp_path)
    for length in LENGTHS:
        path = tmp_path / f"ema-000000000512-{length:.4f}.safetensors"
        stored = load_file(tiny_run / "snapshots" / snapshot_name(512, length))
        for name, tensor in load_file(path).items():
            torch.testing.assert_close(tensor, stored[name], rtol=1e-5, atol=1e-6, msg=name)
        assert f"{length:8.4f}    0.00%    0.000%   1.00  {path}" in shown
    lines = succeed("reconstruct", tiny_run, "--std", "0.08,0.015", "--out", tmp_path).splitlines()
    assert "8 snapshots, at 512 images" in lines[0]
    short, near = (float(line.split()[1].rstrip("%")) for line in lines[-2:])
    assert near < 5 < short
    assert ["too few snapshots" in line for line in lines[-2:]] == [True, False]


def test_reconstructed_weights_go_into_the_run_and_say_where_they_come_from(tiny_run: Path, tmp_path: Path):
    """They are not taken for snapshots, not even in a folder with these."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    succeed("reconstruct", run, "--sigma-rel", "0.07", "--at", 256)
    [path] = (run / "reconstructed").iterdir()
    assert path.name == "ema-000000000256-0.0700.safetensors"
    metadata = read_metadata(path)
    assert (metadata["images_seen"], metadata["sigma_rel"]) == (256, 0.07)
    assert metadata["reconstructed_from"] == [[time, length] for time in (128, 256) for length in LENGTHS]
    shown = succeed("info", path)
    assert "0.07" in shown
    assert "4 snapshots" in shown
    succeed("reconstruct", run / "snapshots", "--std", "0.15", "--out", run / "snapshots")
    assert len(find_snapshots(run)) == 8


# ---------------------------------------------------------------------------------------------------------- generate


def generate(network: Path, out: Path, *options: object) -> dict[str, np.ndarray]:
    """Images by file name."""
    succeed("generate", network, "--steps", 4, "--device", "cpu", "--out", out, *options)
    return {path.name: pixels(path) for path in sorted(out.rglob("*.png"))}


def assert_same_pictures(a: dict[str, np.ndarray], b: dict[str, np.ndarray], levels: int = 1) -> None:
    """Pixels within `levels` of the digits' 17 levels of gray: 16 apart in a file, and one more for rounding."""
    assert a.keys() == b.keys()
    assert max(np.abs(a[name] - b[name]).max() for name in a) <= 16 * levels


@pytest.mark.parametrize("options", [(), ("--churn", 4)], ids=["heun", "churn"])
def test_an_image_depends_on_its_seed_alone(outspoken_network: Path, tmp_path: Path, options: tuple):
    """Not on the batch: sums in another order, then rounding, may move a pixel to the next level."""
    together = generate(outspoken_network, tmp_path / "a", "--seeds", "0-6", *options)
    apart = generate(outspoken_network, tmp_path / "b", "--seeds", "0-6", "--batch", 2, *options)
    assert_same_pictures(together, apart)
    alone = generate(outspoken_network, tmp_path / "c", "--seeds", "5", *options)
    assert_same_pictures(alone, {"000005.png": together["000005.png"]})
    assert np.abs(together["000000.png"] - together["000001.png"]).max() > 16, "another seed, another image"
    if options:
        plain = generate(outspoken_network, tmp_path / "d", "--seeds", "5")
        assert (alone["000005.png"] != plain["000005.png"]).any()


def test_a_grid_holds_every_image(outspoken_network: Path, tmp_path: Path):
    """Rows have ten images where the number allows, enlarged by a whole factor, with gaps between them."""
    drawn = generate(outspoken_network, tmp_path / "out", "--seeds", "0-19", "--grid", tmp_path / "new/grid.png")
    grid = pixels(tmp_path / "new/grid.png")
    gap = (2 * grid.shape[1] - 10 * grid.shape[0]) // 8  # height 2 side + gap, width 10 side + 9 gap
    side = (grid.shape[0] - gap) // 2
    for i, image in enumerate(drawn.values()):
        top, left = i // 10 * (side + gap), i % 10 * (side + gap)
        enlarged = np.kron(image, np.ones((side // 8, side // 8), dtype=int))
        assert (grid[top : top + side, left : left + side] == enlarged).all(), f"image {i}"


def test_a_folder_holds_images_of_one_kind_each_drawn_once(outspoken_network, tmp_path):
    """A mistake does not claim the folder; then images that are there stay, and others are not mixed in."""
    out, options = tmp_path / "out", ("--seeds", "0-5", "--class")
    drawn = ("generate", outspoken_network, "--steps", 4, "--device", "cpu", "--out", out, *options)
    assert edm2(*drawn, 99).code == 1
    assert not out.exists()
    first = generate(outspoken_network, out, *options, 9)
    (out / "000002.png").unlink()
    kept = (out / "000001.png").stat().st_mtime_ns
    again = generate(outspoken_network, out, *options, "9", "--grid", tmp_path / "grid.png")
    assert_same_pictures(first, again)
    assert (out / "000001.png").stat().st_mtime_ns == kept
    result = edm2(*drawn, 4)
    assert result.code == 1
    assert "other settings" in complaint(result.err)


# --------------------------------------------------------------------------------------------- latents, info, demo


def test_pictures_to_latents_to_guided_pictures(tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch):
    """Pictures have several sizes, as people's have, and two classes."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("pictures/wide"), (20, 31, 3), count=48)
    write_images(Path("pictures/high"), (40, 24, 3), count=48)
    succeed("dataset", "convert", "pictures", "pixels.zip", "--resolution", 16)
    succeed("dataset", "encode", "pixels.zip", "latents.zip", "--vae", vae, "--dtype", "fp16")
    described = succeed("dataset", "info", "latents.zip")
    for fact in ("96", "8x8, 8 channels, moments", str(vae), "high", "wide"):
        assert fact in described

    plan = ("--data", "latents.zip", "--duration", 1024, *TINY, "--label-dropout", 0.1, "--stratified-noise")
    plan += ("--lr", 0.05, "--rampup", 0)  # else 16 steps teach too little for guidance to show
    assert "scaled to standard deviation 0.5" in succeed("train", *plan, "--out", "run")
    succeed("reconstruct", "run", "--std", "0.1,0.2")
    long, short = sorted(Path("run/reconstructed").iterdir(), reverse=True)

    draw = ("generate", short, "--seeds", "0-5", "--steps", 6)
    guided = ("--guidance", 3, "--interval", "0.1,10")
    succeed(*draw, "--out", "plain")
    succeed(*draw, *guided, "--unlabelled-guide", "--out", "classifier-free")
    succeed(*draw, *guided, "--guide", long, "--out", "autoguided", "--grid", "grid.png")

    plain, free, auto = (pixels(Path(name, "000003.png")) for name in ("plain", "classifier-free", "autoguided"))
    assert plain.shape == (16, 16, 3)
    assert plain.std() > 0
    assert min(abs(other - plain).max() for other in (free, auto)) > 0, "guidance changed nothing"
    assert pixels(Path("grid.png")).shape[2] == 3


def test_info_describes_snapshots_runs_and_datasets(network: Path, tiny_run: Path, tmp_path: Path):
    images = write_images(tmp_path / "images", (8, 12, 3), classes=2)
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", images)
    young = shutil.copytree(tiny_run, tmp_path / "young", ignore=shutil.ignore_patterns("000*", "*.safetensors"))
    for path, facts in {
        network: ("512", "none (raw weights)", "label_dim=10", "num_images=1797"),
        tiny_run: ("512 of 512 images (100%)", "8 at 4 times", "(0.05, 0.1)", "digits8"),
        young: ("0 at 0 times",),
        images: ("8x12, 3 channels, pixels", "2: class0, class1"),
        archive: ("72",),
        "digits": ("1,797",),
    }.items():
        shown = succeed("info", path)
        for fact in (str(path), *facts):
            assert fact in shown


def test_demo_goes_from_data_to_pictures(tmp_path: Path, monkeypatch):
    """The real one takes minutes; this one trains eight steps of the tiny network."""
    demo = importlib.import_module("edm2.tools.commands.demo")
    preset = PRESETS["digits8"]
    intervals = dict.fromkeys(("status_every", "snapshot_every", "checkpoint_every", "sample_every"), 128)
    tiny = dataclasses.replace(
        preset,
        network=preset.network | {"model_channels": 8},
        training=preset.training | {"duration": 512, "batch_size": 64, **intervals},
    )
    monkeypatch.setitem(PRESETS, "digits8", tiny)
    for name, value in {"SIGMA_RELS": "0.05,0.10", "SAMPLES": 20, "STEPS": 2}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr("edm2.report.page.vega_bundle", lambda folder: "")  # takes seconds
    shown = succeed("demo", "--out", tmp_path)
    best = read_metadata(tmp_path / "best.safetensors")
    assert f"Best EMA length: {best['sigma_rel']:g}" in shown
    for name in ("samples.png", "sweep.png", "loss.png"):
        assert pixels(tmp_path / name).size > 0
        assert name in shown
    assert str(tmp_path / "report.html") in shown
    assert "EMA length" in (tmp_path / "report.html").read_text()
    assert not half_written(tmp_path)
