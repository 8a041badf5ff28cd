"""`edm2 ablate` as people use it: interrupted, shared out, with more variants later, and with mistakes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import TINY, complaint, edm2, half_written, succeed
from safetensors.torch import load_file

from edm2.tools.options.variants import config_names, variants
from edm2.training import TrainingError
from edm2.training.run.run_folder import read_run_config

SCORED = ("--std", "0.1,0.2", "--samples", 12, "--steps", 1)
TRAINED = ("--", *TINY, "--duration", 256, "--holdout", 16, "--rampup", 0)
TWO = ("--vary", "lr=0.01,0.05", "--seeds", "0-1")


def study(out: Path, *options: object, trained: tuple[object, ...] = TRAINED) -> str:
    """Do it; what it prints."""
    return succeed("ablate", "--data", "digits", "--out", out, *SCORED, *options, *trained)


def rows(out: Path) -> list[dict[str, str]]:
    """ablation.csv without what depends on the machine's mood."""
    with open(out / "ablation.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants with two seeds, made at once."""
    out = tmp_path_factory.mktemp("ablate") / "whole"
    study(out, *TWO)
    return out


def test_what_a_study_leaves(whole: Path):
    table = rows(whole)
    assert [(row["label"], row["seed"]) for row in table] == [(f"lr={lr}", s) for lr in ("0.01", "0.05") for s in "01"]
    for row in table:
        distances = [float(row["distance_at_0.1000"]), float(row["distance_at_0.2000"])]
        assert float(row["distance"]) == min(distances)
        assert float(row["raw"]) > 0
    assert len({row["distance_at_0.1000"] for row in table}) == 4
    for name in ("ablation.md", "ablation.png", "losses.csv", "losses.png"):
        assert (whole / name).stat().st_size > 500
    assert not half_written(whole)


def test_runs_are_those_of_edm2_train_and_their_scores_those_of_edm2_sweep(whole: Path, tmp_path: Path):
    run = whole / "runs/lr=0.05-seed1"
    succeed("train", "--data", "digits", "--out", tmp_path / "run", *TRAINED[1:], "--lr", 0.05, "--seed", 1)
    assert read_run_config(run).differences(read_run_config(tmp_path / "run")) == []
    ours, theirs = (load_file(folder / "raw-weights.safetensors") for folder in (run, tmp_path / "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    known = (run / "sweep.jsonl").read_bytes()
    succeed("sweep", run, *SCORED, "--device", "cpu")
    assert (run / "sweep.jsonl").read_bytes() == known
    with open(run / "sweep.csv", newline="") as file:
        swept = {row["sigma_rel"]: row["frechet_distance"] for row in csv.DictReader(file)}
    [row] = [row for row in rows(whole) if (row["label"], row["seed"]) == ("lr=0.05", "1")]
    assert swept == {"0.1000": row["distance_at_0.1000"], "0.2000": row["distance_at_0.2000"], "raw": row["raw"]}


@pytest.mark.slow
def test_shares_make_the_whole(whole: Path, tmp_path: Path):
    out = tmp_path / "shared"
    first = study(out, *TWO, "--share", "1/2")
    assert "2 of 4 runs are missing: lr=0.05, seed 0; lr=0.05, seed 1" in first
    assert "missing" not in study(out, *TWO, "--share", "2/2")
    assert rows(out) == rows(whole)
    assert (out / "losses.csv").read_bytes() == (whole / "losses.csv").read_bytes()


def test_what_is_finished_is_not_computed_again(whole: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edm2.tools.run.train_interruptibly", None)
    with monkeypatch.context() as patched:
        patched.setattr("edm2.sweep.sweep.score_network", None)
        before = rows(whole)
        assert study(whole, *TWO).count("known") == 4
        assert rows(whole) == before
    assert study(whole, *TWO, "--std", "0.1,0.15,0.2").count("known") == 0  # scored again, not trained
    [row, *_] = rows(whole)
    assert row["distance_at_0.1000"] == before[0]["distance_at_0.1000"]
    study(whole, *TWO)


def test_a_report_computes_nothing_and_of_nothing_that_is_finished_writes_nothing(whole: Path, tmp_path: Path):
    """Neither a study, nor tables of no runs where the study is there, but none of its runs was scored in this way."""
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    for out, scored in [(tmp_path / "out", SCORED), (whole, (*SCORED, "--steps", 2))]:
        result = edm2("ablate", "--data", "digits", "--out", out, *scored, *TWO, "--report", *TRAINED)
        assert (result.code, result.out) == (1, "")
        assert f"{out}: none of these runs is finished" in complaint(result.err)
    assert not list(tmp_path.iterdir())
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    shown = study(whole, "--vary", "lr=0.01,0.02", "--report")
    assert "1 of 2 runs are missing: lr=0.02, seed 0" in shown
    assert [row["label"] for row in rows(whole)] == ["lr=0.01"]
    study(whole, *TWO)


@pytest.mark.slow
def test_killed_and_continued_it_is_the_same_study(whole: Path, tmp_path: Path):
    out = tmp_path / "killed"
    words = ["--data", "digits", "--out", out, *SCORED, *TWO, *TRAINED]
    program = "from edm2.tools.commands.ablate import ablate; ablate()"
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, words)], env=env, stdout=subprocess.DEVNULL)
    second = out / "runs/lr=0.05-seed0/snapshots"
    try:
        deadline = time.monotonic() + 200
        while not (second.is_dir() and any(second.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert second.is_dir(), "killed too early to tell"
    assert not (out / "ablation.csv").exists(), "killed too late to tell"
    assert study(out, *TWO).count("known") == 1
    assert rows(out) == rows(whole)


def test_an_interrupted_run_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C, as a signal in the middle of training."""
    from edm2.training import Trainer

    step = Trainer.train_step

    def interrupted(self: Trainer, *arguments: object, **named: object) -> object:
        if self.images_seen == 128:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    result = edm2("ablate", "--data", "digits", "--out", tmp_path, *SCORED, *TWO, *TRAINED)
    assert result.code == 130
    assert "run the same command again" in result.err
    assert (tmp_path / "runs/lr=0.01-seed0/checkpoints").is_dir()


def test_a_failed_run_does_not_end_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor one that ends in numbers that are not finite: its samples would be black, and their distance a number."""
    from edm2.tools import run

    train = run.train_interruptibly

    def fails(config, dataset):
        if config.ref_lr == 50:
            raise TrainingError(f"{config.out}: had non-finite gradients")
        return train(config, dataset)

    monkeypatch.setattr(run, "train_interruptibly", fails)
    wild = ("--vary", "lr=50,1e30,0.01")
    assert study(tmp_path, *wild).count("failed: ") == 2
    raised, not_finite, fine = (row["failure"] for row in rows(tmp_path))
    assert "had non-finite gradients" in raised
    assert "lower the learning rate" in not_finite
    assert not fine
    assert "had non-finite gradients" in (tmp_path / "ablation.md").read_text()
    assert study(tmp_path, *wild).count("known") == 3


@pytest.mark.slow
def test_letters_and_weightings_and_their_traditional_average(tmp_path: Path):
    short = ("--", *TINY, "--duration", 128)
    study(tmp_path, "--configs", "A", "--weightings", "edm", "--vary", "dropout=0.1", trained=short)
    table = {row["label"]: row for row in rows(tmp_path)}
    assert list(table) == ["A", "edm", "dropout=0.1"]
    assert float(table["A"]["traditional"]) > 0
    assert table["edm"]["traditional"] == ""
    assert read_run_config(tmp_path / "runs/A-seed0").network.config == "A"
    assert read_run_config(tmp_path / "runs/edm-seed0").weighting == "edm"


# ----------------------------------------------------------------------------------------------------------- words


def test_what_variants_stand_for():
    assert config_names("a,C,...,f") == ["A", "C", "D", "E", "F"]
    found = variants("A,G", "min-snr", ["decay=150,600", "xflip=yes,no", "--decay=150"])
    assert {variant.label: variant.options for variant in found} == {
        "A": ("--config", "A"),
        "G": ("--config", "G"),
        "min-snr": ("--weighting", "min-snr"),
        "decay=150": ("--decay", "150"),
        "decay=600": ("--decay", "600"),
        "xflip=yes": ("--xflip",),
        "xflip=no": ("--no-xflip",),
    }


def test_another_study_is_not_overwritten(whole: Path):
    before = json.loads((whole / "study.json").read_text())
    longer = ("--", *TINY, "--duration", 512, "--holdout", 16)
    result = edm2("ablate", "--data", "digits", "--out", whole, *SCORED, *TWO, *longer)
    assert result.code == 1
    assert "duration is 256 there and 512 here" in complaint(result.err)
    assert json.loads((whole / "study.json").read_text()) == before
