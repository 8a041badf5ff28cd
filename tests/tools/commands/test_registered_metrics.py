"""A new detector or metric is a file and a line in the registry; the command line and sweeps then know it."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import complaint, edm2, succeed

from edm2.io.npz import write_npz
from edm2.metrics.registry import CLASSIFIERS, DETECTORS, METRICS, WEIGHTS_OPTIONS, RegisteredDetector
from edm2.training.imports import import_target

MODULE = '''
from edm2.metrics.scores import FeaturesMetric, MetricValue


class Brightness:
    """Mean of each row of pixels."""

    name = "brightness"
    title = "FD-brightness"

    def __init__(self, weights=None, device="cpu"):
        self.device = device

    def __call__(self, images):
        return images.to(self.device).float().mean(dim=(1, 3))


class MeanGap(FeaturesMetric):
    """Distance of the means."""

    def __call__(self, samples, title):
        gap = abs(samples.features.mean() - self.real.mean())
        return [MetricValue("gap", "mean gap", self.detector, float(gap))]
'''


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A detector and a metric, in a module of their own and a line each."""
    (tmp_path / "made_up.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(DETECTORS, "brightness", RegisteredDetector("made_up:Brightness"))
    monkeypatch.setitem(METRICS, "gap", "made_up:MeanGap")
    yield
    sys.modules.pop("made_up", None)


def test_a_registered_detector_and_metric_score_images(registered, tmp_path: Path):
    reference, scores = tmp_path / "ref.npz", tmp_path / "scores.json"
    pixels = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), dtype=np.uint8)
    write_npz(tmp_path / "samples.npz", pixels, 70)
    succeed("metrics", "ref", "digits", reference, "--detector", "brightness", "--device", "cpu")
    calc = ("metrics", "calc", tmp_path / "samples.npz", "--metrics", "brightness,gap", "--device", "cpu")
    succeed(*calc, "--ref", reference, "--out", scores)
    found = {metric["name"]: metric for metric in json.loads(scores.read_text())["metrics"]}
    assert list(found) == ["frechet", "gap"]
    assert found["frechet"]["title"] == "FD-brightness"
    with np.load(reference) as real:
        gap = abs(pixels.astype(np.float32).mean() - real["brightness/features"].mean())
    assert found["gap"]["value"] == pytest.approx(gap, rel=1e-5)
    assert "compared with what? Give --ref" in complaint(edm2(*calc).err)


def test_every_registered_name_has_its_class():
    for name, registered in (DETECTORS | CLASSIFIERS).items():
        assert import_target(registered.target).name == name
        assert registered.weights_option in (None, *WEIGHTS_OPTIONS)
    for target in METRICS.values():
        assert {"from_reference", "lower_is_better", "num_features"} <= set(dir(import_target(target)))
    shown = " ".join(succeed("metrics", "ref", "--help").split())
    assert all(name in shown for name in (*DETECTORS, "--inception", "--dinov2"))


def test_a_registered_detector_or_metric_scores_a_sweep(registered, tiny_run: Path, tmp_path: Path):
    """Scores of the metric are kept apart from Frechet distances of the same samples."""
    reference, out = tmp_path / "ref.npz", tmp_path / "out"
    succeed("metrics", "ref", "digits", reference, "--detector", "pixels", "--keep", 100, "--device", "cpu")
    sweep = ("sweep", tiny_run, "--std", "0.05,0.1", "--samples", 20, "--steps", 1, "--device", "cpu", "--out", out)
    assert "compared by FD-pixels" in succeed(*sweep, "--ref", reference)
    assert "compared by gap by pixels" in succeed(*sweep, "--ref", reference, "--metric", "gap")
    known = [json.loads(line) for line in (out / "sweep.jsonl").read_text().splitlines()]
    assert [row.get("metric") for row in known] == [None] * 3 + ["gap"] * 3  # two lengths and the raw weights, twice
    assert "compared by FD-brightness" in succeed(*sweep, "--detector", "brightness")
    with open(out / "sweep.csv", newline="") as file:
        assert {row["metric"] for row in csv.DictReader(file)} == {"FD-brightness"}
    for options, message in (
        (("--ref", reference, "--metric", "pr"), "high ones of this are good"),
        (("--metric", "gap"), "give --ref"),
        (("--metric", "fid"), "there are kid, pr, is, gap"),
    ):
        assert message in complaint(edm2(*sweep, *options).err)
