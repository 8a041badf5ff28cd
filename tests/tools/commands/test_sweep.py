"""`edm2 sweep` and `edm2 train --eval` as people use them: interrupted, on several processes, with guidance."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import TINY, complaint, edm2, succeed, torchrun
from safetensors.torch import load_file

from edm2.io.model import load, read_metadata
from edm2.post_hoc_ema import find_snapshots, write_snapshot

FAST = ("--samples", 70, "--steps", 1, "--device", "cpu")
"""Two batches, of 64 and of 6."""

LEARNS = ("--label-dropout", 0.2, "--lr", 0.05, "--rampup", 0)
"""Enough in six steps for labels to make a difference."""


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def known(folder: Path) -> list[bytes]:
    path = folder / "sweep.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def guided_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that missed labels."""
    out = tmp_path_factory.mktemp("guided") / "run"
    succeed("train", "--data", "digits", "--duration", 384, *TINY, *LEARNS, "--out", out)
    return out


def test_times_and_lengths_in_one_table(tiny_run: Path, tmp_path: Path):
    before = set(tiny_run.rglob("*"))
    shown = succeed("sweep", tiny_run, "--std", "0.05,0.1,0.2", "--at", "128,256,...,512", *FAST, "--out", tmp_path)
    assert "12 points, 840 images (1 evaluation each, heun), compared by FD-pixels" in shown
    table = rows(tmp_path)
    assert [row["images_seen"] for row in table] == [str(t) for t in (128, 256, 384, 512) for _ in range(3)] + ["512"]
    best = min(table[:-1], key=lambda row: float(row["frechet_distance"]))["sigma_rel"]
    assert [line.split()[1] for line in shown.splitlines() if "<- best" in line] == [best]
    assert table[-1]["sigma_rel"] == "raw"
    assert all(0 <= float(row["accuracy"]) <= 1 for row in table)
    assert len(known(tmp_path)) == 14  # with the raw weights, and real images
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    left = {path.name.partition("-")[0] for path in tmp_path.iterdir()}
    assert left == {"sweep.csv", "sweep.png", "sweep.jsonl", "reference"}  # no images, and no networks
    assert set(tiny_run.rglob("*")) == before


def test_steps_that_are_few_for_a_solver_are_warned_of_once_each(tiny_run: Path, tmp_path: Path):
    """A curve of blurred images need not have its minimum where that of good ones is."""
    points = ("--std", "0.1", "--samples", 10, "--device", "cpu", "--solver", "deis")
    warned = edm2("sweep", tiny_run, *points, "--steps", "2,12", "--out", tmp_path)
    assert warned.code == 0
    assert warned.err.count("2 evaluations are few for a denoiser: take --solver deis --steps 16") == 1
    assert warned.err.count("few for a denoiser") == 1


def test_the_best_can_be_made_by_the_printed_commands(guided_run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--std", "0.06,0.12", "--guidance", "1.5,2", "--guide", guided_run, "--guide-at", 128)
    shown = succeed("sweep", guided_run, *options, "--guide-std", "0.1,0.15", *FAST, "--out", "swept")
    best = min(rows(Path("swept"))[:-1], key=lambda row: float(row["frechet_distance"]))
    commands = [line.strip() for line in shown.splitlines() if line.startswith("  edm2 ")]
    assert [shlex.split(command)[1] for command in commands] == ["reconstruct", "reconstruct", "generate"]
    assert f"--guidance {best['guidance']}" in commands[-1]
    for command in commands:
        succeed(*shlex.split(command)[1:])
    assert len(list(Path("samples").glob("*.png"))) == 64


def test_comparing_with_other_sweeps(tiny_run: Path, tmp_path: Path):
    """Fewer samples have larger distances; folders of one name have their own titles; an older table says nothing."""
    few, more, old, both = tmp_path / "a/sweep", tmp_path / "b/sweep", tmp_path / "old", tmp_path / "c"
    sweep = ("sweep", tiny_run, "--std", "0.05,0.1", *FAST)
    succeed(*sweep, "--out", few, "--samples", 20)
    succeed(*sweep, "--out", more)
    shutil.copytree(few, old)
    table = old / "sweep.csv"
    table.write_text("".join(line.rsplit(",", 2)[0] + "\n" for line in table.read_text().splitlines()))
    shutil.copytree(more, both)
    compared = edm2(*sweep, "--out", both, *(word for other in (few, more, old) for word in ("--compare", other)))
    assert compared.code == 0, compared.err
    assert (both / "sweep.png").read_bytes() != (more / "sweep.png").read_bytes()
    [warning] = [line for line in compared.err.splitlines() if "do not compare" in line]
    assert f"{few} has FD-pixels of 20 samples, this sweep FD-pixels of 70 samples: " in warning


def test_the_same_values_as_from_a_reference_file(tiny_run: Path, tmp_path: Path):
    """`--ref` takes the place of the data; nobody knows classes then."""
    from edm2.metrics import load_detector, reference_of, write_reference
    from edm2.training import open_dataset

    detector = load_detector("pixels")
    write_reference(tmp_path / "ref.npz", {"pixels": reference_of(open_dataset("digits"), detector)})
    succeed("sweep", tiny_run, "--std", "0.1", *FAST, "--out", tmp_path / "data")
    succeed("sweep", tiny_run, "--std", "0.1", *FAST, "--out", tmp_path / "ref", "--ref", tmp_path / "ref.npz")
    data, ref = rows(tmp_path / "data")[0], rows(tmp_path / "ref")[0]
    assert data["frechet_distance"] == ref["frechet_distance"]
    assert ref["accuracy"] == ""
    other = edm2("sweep", tiny_run, "--detector", "fid", "--ref", tmp_path / "ref.npz", *FAST, "--out", tmp_path / "x")
    assert "holds no statistics of fid, only of pixels; choose --detector" in complaint(other.err)
    assert not (tmp_path / "x").exists()


def test_scores_by_a_reference_file_belong_to_the_program_and_the_weights_of_the_detector(tmp_path, monkeypatch):
    """Which a file of statistics, unlike those of the data, says nothing of."""
    from edm2.metrics import load_detector, reference_of, write_reference
    from edm2.sweep.score_cache import key_of
    from edm2.tools.options.evaluators import load_evaluator
    from edm2.tools.progress import progress_bar
    from edm2.training import open_dataset
    from edm2.training.distributed.processes import ONE_PROCESS

    name = "sums_of_a_sweep:sums"
    program, weights, ref = tmp_path / "sums_of_a_sweep.py", tmp_path / "weights.pt", tmp_path / "ref.npz"
    program.write_text("def sums(images):\n    return images.flatten(2).sum(2).expand(-1, 2)\n")
    weights.write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    write_reference(ref, {name: reference_of(open_dataset("digits"), load_detector(name))})

    def key() -> str:
        return key_of(load_evaluator(name, weights, None, ref, "cpu", ONE_PROCESS, progress_bar).to_json())

    keys = [key(), key()]
    weights.write_bytes(b"other")
    keys.append(key())
    program.write_text(program.read_text() + "# edited\n")
    keys.append(key())
    assert len(set(keys)) == 3


def test_real_images_are_looked_at_once(tiny_run: Path, tmp_path: Path, monkeypatch):
    """Neither their statistics nor what as many of them score is computed by a sweep that goes on, as a search here."""
    options = (*FAST, "--at", "256,512", "--out", tmp_path / "out")
    first = succeed("sweep", tiny_run, "--std", "0.1,0.2", *options)
    lines = len(known(tmp_path / "out"))
    monkeypatch.setattr("edm2.sweep.reference_cache.reference_of", None)
    monkeypatch.setattr("edm2.sweep.evaluator.Evaluator.real_data_fd", None)
    again = succeed("sweep", tiny_run, "--std", "0.1,0.2", "--search", 3, *options)
    assert "at most 3 points at each of 2 times, 420 images" in again
    assert len([row for row in rows(tmp_path / "out") if row["sigma_rel"] != "raw"]) == 2 * 3
    assert len(known(tmp_path / "out")) == lines + 2
    assert next(line for line in first.splitlines() if "real images" in line) in again
    assert len(list((tmp_path / "out").glob("reference-pixels-*.npz"))) == 1


def test_snapshots_are_checked_as_by_reconstruct(tiny_run: Path, tmp_path: Path):
    """Those of another run are refused; those of an earlier version, which knew fewer settings, and gaps are not.

    Lengths that they give only roughly are reported: 0.02 takes dozens of snapshots, 0.08 lies between what is stored.
    """
    run = shutil.copytree(tiny_run, tmp_path / "run")
    first, _, third, *_ = sorted((run / "snapshots").iterdir())
    sweep = ("sweep", run, "--std", "0.02,0.05,0.08", *FAST, "--out", tmp_path / "out")
    metadata = read_metadata(first)
    write_snapshot(first, load_file(first), metadata | {"training": metadata["training"] | {"seed": 7}})
    assert "different runs: training.seed is 7 in one and 0 in the other" in complaint(edm2(*sweep).err)
    assert not known(tmp_path / "out")
    del metadata["training"]["relative_weighting"], metadata["network"]["attn_balance"]
    write_snapshot(first, load_file(first), metadata)
    third.unlink()
    result = edm2(*sweep)
    assert result.code == 0
    assert "no snapshot of 256 images at length 0.05; averages are made without" in result.err
    assert "at 512 images there are too few snapshots for the EMA lengths 0.02: profiles are up to" in result.err


# ---------------------------------------------------------------------------------- processes that are killed, or two


@pytest.mark.slow
def test_killed_and_continued_it_is_the_same_sweep(tiny_run: Path, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("sweep", tiny_run, "--std", "0.05,0.12,0.2", *FAST, "--repeats", 2, "--steps", 10, "--out")
    torchrun(1, *options, whole)
    command = [sys.executable, "-m", "edm2", *map(str, options), str(killed)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 100
        while not known(killed) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = known(killed)
    assert 0 < len(before) < len(known(whole)), "killed too early or too late to tell"
    torchrun(1, *options, killed)
    assert known(killed)[: len(before)] == before
    assert (killed / "sweep.csv").read_bytes() == (whole / "sweep.csv").read_bytes()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tiny_run: Path, tmp_path: Path):
    """Bit by bit: batches are the same, and features are summed up in order."""
    options = ("sweep", tiny_run, "--std", "0.05,0.12,0.2", *FAST, "--samples", 150, "--search", 5, "--out")
    for count, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        assert torchrun(count, *options, out).count("<- best") == 1
    assert (tmp_path / "two/sweep.csv").read_bytes() == (tmp_path / "one/sweep.csv").read_bytes()
    assert known(tmp_path / "two") == known(tmp_path / "one")


# ---------------------------------------------------------------------------------------------------- in training


@pytest.mark.slow
def test_scores_during_training_are_those_of_a_sweep_and_change_nothing(tmp_path: Path, monkeypatch):
    """Every second snapshot and the end; and the sweep takes them over."""
    out = tmp_path / "run"
    train = ("train", "--data", "digits", "--duration", 640, *TINY)
    succeed(*train, "--out", tmp_path / "plain")
    succeed(*train, "--out", out, "--eval", "0.05,0.12", "--eval-every", 2, "--eval-samples", 20)
    plain, scored = (load(folder / "raw-weights.safetensors").state_dict() for folder in (tmp_path / "plain", out))
    assert all(torch.equal(plain[name], scored[name]) for name in plain)
    assert len(find_snapshots(out)) == len(find_snapshots(tmp_path / "plain"))
    lines = [json.loads(line) for line in known(out)]
    assert [(line["images_seen"], line["sigma_rel"]) for line in lines] == [
        (time, length) for time in (256, 512, 640) for length in (0.05, 0.12)
    ]
    swept = ("sweep", out, "--std", "0.05,0.12", "--at", "256,512", "--samples", 20, "--device", "cpu")
    shown = succeed(*swept, "--out", tmp_path / "anew")
    assert "raw" not in shown, "raw weights are those of the end"
    assert [row["frechet_distance"] for row in rows(tmp_path / "anew")] == [str(line["distance"]) for line in lines[:4]]
    monkeypatch.setattr("edm2.sweep.sweep.score_network", None)
    succeed(*swept)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory\nat length"), OSError("disk"), RuntimeError("")]
)
def test_a_run_does_not_end_over_a_picture_or_a_score(error: Exception, tmp_path: Path, monkeypatch):
    def fail(*arguments, **options) -> None:
        raise error

    monkeypatch.setattr("edm2.tools.run.save_grid", fail)
    monkeypatch.setattr("edm2.sweep.sweep.score_network", fail)
    result = edm2("train", "--data", "digits", "--duration", 128, *TINY, "--out", tmp_path, "--eval", "0.1")
    assert result.code == 0, result.err
    assert f"No samples drawn: {str(error).splitlines()[0] if str(error) else ''}" in result.err
    assert "not scored at 128 images" in result.out + result.err
    assert "at length" not in result.out + result.err
    assert (tmp_path / "raw-weights.safetensors").exists()


def test_what_cannot_be_scored_shows_before_training(tmp_path: Path):
    train = ("train", "--data", "digits", "--duration", 128, *TINY, "--out", tmp_path / "run")
    assert "Give --eval" in complaint(edm2(*train, "--eval-detector", "pixels").err)
    result = edm2(*train, "--eval", "0.1", "--eval-detector", "inception")
    assert "inception" in complaint(result.err)
    assert not (tmp_path / "run").exists()
