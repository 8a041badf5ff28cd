"""What a study makes of its runs: from known scores to tables, and which results are known to whom."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from edm2.metrics import feature_statistics, load_detector
from edm2.planning.plan import plan_run
from edm2.study.study import SIGMAS, Failure, Outcome, Scoring, Trial, claim_study
from edm2.study.summary import (
    Summary,
    best_common_sigma_rel,
    differing_settings,
    read_diagnostics,
)
from edm2.sweep.evaluator import Evaluator, SampleSettings
from edm2.tools.figures.ablation import draw_distances, draw_losses
from edm2.tools.reports.ablation import StudyReport
from edm2.training import open_dataset
from edm2.training.data.dataset import Subset
from edm2.training.diagnostics.holdout import LossPerLevel

LENGTHS = (0.05, 0.1, 0.2)


def outcome(label: str, seed: int, *distances: float, loss: float = 1.0, **changes: object) -> Outcome:
    """With these distances at LENGTHS, and the same loss at all noise levels."""
    known = {
        "accuracy": None, "raw": 9.0, "traditional": None, "traditional_length": None, "floor": 0.5, "held_out": True,
        "training_loss": 3.0, "seconds": 60.0, "parameters": 1000,
    }  # fmt: skip
    levels = LossPerLevel(SIGMAS, (loss,) * len(SIGMAS))
    return Outcome(label, seed, dict(zip(LENGTHS, distances, strict=True)), levels=levels, **known | changes)


@pytest.fixture(scope="module")
def scoring() -> Scoring:
    features = np.random.default_rng(0).normal(size=(100, 64))
    evaluator = Evaluator(load_detector("pixels"), feature_statistics(features))
    return Scoring(LENGTHS, evaluator, SampleSettings(100, 8), open_dataset("digits"))


def trial(label: str, seed: int, folder: Path, **choices: object) -> Trial:
    path = folder / f"{label}-seed{seed}"
    path.mkdir(parents=True, exist_ok=True)
    chosen = {"seed": seed, **choices}
    return Trial(label, plan_run(open_dataset("digits"), "digits", str(path), "digits8", None, chosen))


# ----------------------------------------------------------------------------------------------------- over seeds


def test_the_best_length_of_a_variant_is_that_of_its_mean_curve_and_each_run_has_its_own():
    """Near it are the lengths that no gap separates from it."""
    a = Summary("A", (outcome("A", 0, 1.0, 2.0, 4.0), outcome("A", 1, 5.0, 2.0, 3.0)))
    assert a.best == 0.1
    assert a.over_seeds(lambda o: o.distance) == [1.0, 2.0]
    assert a.over_seeds(lambda o: o.best) == [0.05, 0.1]
    assert a.over_seeds(lambda o: o.accuracy) == []
    assert a.curve[0.05] == 3
    assert Summary("A", (outcome("A", 0, 1.05, 1.0, 1.2),)).near == (0.05, 0.1)
    assert Summary("A", (outcome("A", 0, 1.0, 2.0, 1.0),)).near == (0.05, 0.05)


def test_no_variant_of_large_distances_decides_the_common_length():
    """B alone would gain ten units at 0.2, but that is 10 %; A loses half."""
    a, b = (Summary("A", (outcome("A", 0, 9.0, 1.0, 1.5),)), Summary("B", (outcome("B", 0, 900.0, 100.0, 90.0),)))
    assert best_common_sigma_rel([a, b]) == 0.1


def test_losses_are_compared_with_those_of_the_same_seed():
    reference = Summary("A", (outcome("A", 0, 1, 1, 1, loss=1.0), outcome("A", 1, 1, 1, 1, loss=4.0)))
    other = Summary("B", (outcome("B", 0, 1, 1, 1, loss=2.0), outcome("B", 1, 1, 1, 1, loss=8.0)))
    assert set(other.losses_over(reference).flat) == {2.0}
    late = Summary("B", (outcome("B", 7, 1, 1, 1, loss=5.0),))
    assert set(late.losses_over(reference).flat) == {2.0}


def test_settings_that_differ(tmp_path: Path):
    trials = [trial("slow", 0, tmp_path, ref_lr=0.001), trial("big", 0, tmp_path, model_channels=64)]
    assert differing_settings(trials) == {
        "slow": {"ref_lr": 0.001, "model_channels": 32},
        "big": {"ref_lr": 0.012, "model_channels": 64},
    }


# --------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def report(tmp_path: Path, scoring: Scoring) -> StudyReport:
    trials = [
        trial(label, seed, tmp_path / "runs", **options)
        for seed in (0, 1)
        for label, options in (("A", {"ref_lr": 0.001}), ("G", {}), ("wild", {"ref_lr": 5.0}))
    ]
    results = [
        outcome("A", 0, 8.0, 4.0, 6.0, traditional=7.0, traditional_length=0.03),
        outcome("A", 1, 6.0, 5.0, 4.0, traditional=9.0, traditional_length=0.03),
        outcome("G", 0, 1.0, 2.0, 3.0, accuracy=0.75),
        Failure("wild", 0, "diverged"),
    ]
    return StudyReport(trials, results, scoring, "edm2 train --data digits")


def table(path: Path, heading: str = "") -> dict[str, dict[str, str]]:
    """The first table of a Markdown file after a heading, by its first column."""
    lines = path.read_text().partition(heading)[2].splitlines() if heading else path.read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    names = rows[0]
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows[2:] if len(row) == len(names)}


def test_one_row_per_variant(report: StudyReport, tmp_path: Path):
    report.write(tmp_path)
    rows = table(tmp_path / "ablation.md")
    assert list(rows) == ["A", "G", "wild"]
    assert rows["A"]["distance"] == "4 ± 0"
    assert rows["A"]["best EMA length"] == "0.15 (0.1 to 0.2)"
    assert rows["A"]["at EMA 0.05"] == "7 ± 1.4"
    assert rows["A"]["traditional EMA"] == "8 ± 1.4"
    assert rows["A"]["seeds"] == "2"
    assert (rows["G"]["distance"], rows["G"]["at EMA 0.05"], rows["G"]["accuracy"]) == ("1", "1", "0.750")
    assert rows["wild"]["seeds"] == "0 (1 failed)"
    text = (tmp_path / "ablation.md").read_text()
    assert "2 of 6 runs are missing" in text
    assert "wild, seed 0, failed: diverged" in text
    assert "rises by 300% with the best EMA length of each, by 600% at one length" in text


def record(images: int, activation: float, weight: float, *gradients: float) -> dict:
    """A measurement with two buckets and bins of noise levels."""
    return {
        "images_seen": images,
        "activations": {"max": {"Enc": activation / 2, "Dec": activation}},
        "weights": {"raw": {"mean": {"Enc": weight, "Dec": 3 * weight}}},
        "updates": {"relative": {"Enc": 0.1, "Dec": 0.3}},
        "noise_levels": {"gradient_norm": {str(k): norm for k, norm in enumerate(gradients)}},
    }


def test_diagnostics_are_compared_if_there_are_any(report: StudyReport, tmp_path: Path):
    report.write(tmp_path)
    assert "## Diagnostics" not in (tmp_path / "ablation.md").read_text()
    for run, factor in ((report.trials[0], 1.0), (report.trials[3], 4.0)):
        lines = [record(64, 1, 1, 9, 9), record(500, 2, 1.5, 1, 8), record(1000, 3 * factor, 2, 4, 2)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (Path(run.config.out) / "diagnostics.jsonl").write_text(text)
    dataclasses.replace(report).write(tmp_path)
    rows = table(tmp_path / "ablation.md", "## Diagnostics")
    assert list(rows) == ["A", "G", "wild"]
    assert rows["A"]["largest activation"] == "7.5 ± 6.4"  # 3 and 12
    assert rows["A"]["its growth in the second half"] == "3.75 ± 3.2"  # 1.5 and 6
    assert rows["A"]["growth of raw weights"] == "2 ± 0"
    assert rows["A"]["relative update"] == "0.2 ± 0"
    assert rows["A"]["gradient, strongest to weakest bin"] == "2"  # sqrt(1 * 4) and sqrt(8 * 2)
    assert set(rows["G"].values()) == {"G", ""}


@pytest.mark.parametrize("wrong", [None, 0.0])
def test_diagnostics_that_are_no_numbers_are_left_out(wrong: float | None, tmp_path: Path):
    (tmp_path / "diagnostics.jsonl").write_text("")
    assert read_diagnostics(tmp_path) is None
    lines = [json.dumps(record(images, 1, 1, 1, wrong)) + "\n" for images in (64, 500)]
    (tmp_path / "diagnostics.jsonl").write_text("".join(lines))
    assert read_diagnostics(tmp_path) is None


def test_one_row_per_run(report: StudyReport, tmp_path: Path):
    report.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "ablation.csv").open(newline="")))
    assert [(row["label"], row["seed"]) for row in rows] == [("A", "0"), ("A", "1"), ("G", "0"), ("wild", "0")]
    assert (rows[1]["best_sigma_rel"], rows[1]["distance"], rows[1]["distance_at_0.0500"]) == ("0.2000", "4.0", "6.0")
    assert rows[0]["settings"] == "ref_lr=0.001"
    assert (rows[3]["distance"], rows[3]["failure"]) == ("", "diverged")
    losses = list(csv.DictReader((tmp_path / "losses.csv").open(newline="")))
    assert len(losses) == 3 * len(SIGMAS)
    (tmp_path / "ablation.png").unlink()
    dataclasses.replace(report, results=[Failure("wild", 0, "diverged")]).write(tmp_path)
    assert "diverged" in (tmp_path / "ablation.md").read_text()
    assert not (tmp_path / "ablation.png").exists(), "there is nothing to draw"


def test_curves(report: StudyReport):
    [axes] = draw_distances(report.scored, "FD").axes
    curves = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(curves) == ["A  (4 ± 0)", "G  (1)"]
    assert list(curves["A  (4 ± 0)"].get_ydata()) == [7, 4.5, 5]
    marked = [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_fillstyle() == "none"]
    assert marked == [(10, 4.5), (5, 1)]
    _, right = draw_losses(report.scored).axes
    assert set(right.lines[0].get_ydata()) == {1.0}


# --------------------------------------------------------------------------------------------------- what is known


def test_results_are_known_to_those_who_ask_the_same(tmp_path: Path, scoring: Scoring):
    run = trial("A", 0, tmp_path)
    assert run.result(scoring) is None
    known = outcome("A", 0, 1 / 3, 2.0, 3.0)
    run.keep(known, scoring)
    assert run.result(scoring) == known
    assert run.result(dataclasses.replace(scoring, sampling=SampleSettings(200, 8))) is None
    assert run.result(dataclasses.replace(scoring, sigma_rels=(0.05, 0.1))) is None
    for changed in ({"ref_lr": 0.001}, {"duration": 640}):
        assert trial("A", 0, tmp_path, **changed).result(scoring) is None
    assert trial("A", 0, tmp_path, status_every=64).result(scoring) == known
    (tmp_path / "A-seed0/ablation.json").write_text('{"trial": ')
    assert run.result(scoring) is None
    failure, other = Failure("A", 0, "diverged"), dataclasses.replace(scoring, sampling=SampleSettings(200, 8))
    run.keep(failure, scoring)
    assert (run.result(scoring), run.result(other)) == (failure, None)
    run.keep(failure, None)  # what cannot be trained has failed however it would be scored
    assert (run.result(scoring), run.result(other)) == (failure, failure)


def test_outcomes_keep_their_names_in_files(tmp_path: Path, scoring: Scoring):
    """Those of the first version: distances by EMA length, the distance of real images as floor."""
    run, known = trial("A", 0, tmp_path), outcome("A", 0, 1.0, 2.0, 3.0)
    levels = {"sigmas": list(SIGMAS), "losses": [1.0] * len(SIGMAS)}
    written = {
        "label": "A", "seed": 0, "distances": {"0.05": 1.0, "0.1": 2.0, "0.2": 3.0}, "accuracy": None, "raw": 9.0,
        "traditional": None, "traditional_length": None, "floor": 0.5, "levels": levels, "held_out": True,
        "training_loss": 3.0, "seconds": 60.0, "parameters": 1000,
    }  # fmt: skip
    path = tmp_path / "A-seed0/ablation.json"
    path.write_text(json.dumps({"trial": run.key, "scoring": scoring.key, "outcome": written}))
    assert run.result(scoring) == known
    run.keep(known, scoring)
    assert json.loads(path.read_text())["outcome"] == written


def test_a_folder_is_one_study(tmp_path: Path):
    folder, digits, facts = tmp_path / "study", open_dataset("digits"), {"data": "digits", "shape": (1, 8, 8)}
    for _ in range(2):
        claim_study(folder, facts, digits)
    claim_study(folder, facts | {"data": "the/same/elsewhere"}, digits)
    with pytest.raises(ValueError, match="holds another study \\(duration is not given there and 100 here\\)"):
        claim_study(folder, facts | {"duration": 100}, digits)
    with pytest.raises(ValueError, match="begun with other images: 1797 images then, 100 now"):
        claim_study(folder, facts, Subset(digits, range(100)))
    with pytest.raises(ValueError, match="holds no study"):
        claim_study(tmp_path, {}, digits)
