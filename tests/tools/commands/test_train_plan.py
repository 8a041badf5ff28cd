"""`edm2 train` describes a run before it begins, forecasts its time soon after, and measures it on request."""

import math
import re
from pathlib import Path

import pytest
import torch
from command_line import TINY, complaint, edm2, succeed

from edm2.tools.commands.train import FIRST, train
from edm2.tools.options.groups import GroupedOption
from edm2.training.step import TrainStep

DIGITS = ("train", "--data", "digits", "--duration", 512, *TINY)


def subjects(shown: str) -> dict[str, str]:
    """Phrases of a printed plan by their subjects."""
    return {m[1]: m[2] for m in re.finditer(r"^([A-Za-z ]+): +(.*)$", shown, re.MULTILINE)}


def test_a_dry_run_describes_the_run_and_writes_nothing(tmp_path: Path):
    text = succeed(*DIGITS, "--out", tmp_path / "run", "--dry-run", "--stratified-noise")
    assert "nothing was written" in text
    shown = subjects(text)
    assert {"data", "scaling", "network", "training", "compute", "memory", "time", "snapshots", "disk"} <= set(shown)
    assert "1,797 images, 10 classes" in shown["data"]
    assert "41,379 parameters" in shown["network"]
    assert "8 (4 times, EMA lengths 0.05 and 0.1)" in shown["snapshots"]
    assert "one from each of 64 strata" in shown["noise levels"]
    assert "FLOPs to train on it" in shown["compute"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("instructions", "preset", "precision"),
    [
        ({"avx512_bf16"}, "edm2-small-32", "bf16"),
        ({"amx_tile"}, "edm2-small-32", "bf16"),
        (set(), "edm2-small-32", "fp32"),
        ({"avx512_bf16"}, "digits8", "fp32"),
    ],
)
def test_precision_is_what_the_processor_has_instructions_for(instructions, preset, precision, tmp_path, monkeypatch):
    """The digits are the exception, so that every machine repeats the documented numbers."""
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(f"torch.cpu._is_{name}_supported", lambda name=name: name in instructions)
    run = ("train", "--data", "digits", "--preset", preset, "--device", "cpu", "--out", tmp_path / "run", "--dry-run")
    assert f"cpu, {precision}, " in subjects(succeed(*run))["device"]
    assert "cpu, fp16, " in subjects(succeed(*run, "--precision", "fp16"))["device"]


@pytest.mark.slow
def test_measuring_makes_steps_and_writes_nothing(tiny_run: Path, tmp_path: Path):
    """Neither where there is nothing, nor in a folder with a run."""
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    for out in (tmp_path / "run", tiny_run):
        shown = subjects(succeed(*DIGITS, "--out", out, "--dry-run", "--measure"))
        assert re.fullmatch(r"[\d,.e+]+ images/s", shown["speed"])
        assert "for 512 images" in shown["time"]
        assert shown["peak memory"].endswith(" GB")
    assert list(tmp_path.iterdir()) == []
    assert before == {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    result = edm2(*DIGITS, "--out", tmp_path / "run", "--measure")
    assert result.code == 2
    assert "--dry-run" in complaint(result.err)


def test_a_run_prints_its_speed_and_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After 53 steps of 8 images, unless they take long; a shorter run is over before."""
    monkeypatch.setattr("edm2.training.run.speed.SHORT_SECONDS", math.inf)
    monkeypatch.setattr("edm2.training.run.speed.LONG_SECONDS", math.inf)
    shown = succeed("train", "--data", "digits", *TINY, "--batch", 8, "--duration", 480, "--out", tmp_path / "run")
    said = re.findall(r"^speed: (.*) images/s; the remaining 56 images will take about (.*)$", shown, re.MULTILINE)
    assert len(said) == 1, shown


def test_too_little_memory_is_one_line_with_the_remedy(monkeypatch, tmp_path: Path):
    def step(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(TrainStep, "__call__", step)
    for options in (["--dry-run", "--measure"], []):
        result = edm2(*DIGITS, "--out", tmp_path / "run", *options)
        assert result.code == 1
        assert "64 images per forward pass; lower --micro-batch" in complaint(result.err)


def test_options_stand_under_headings():
    shown = succeed("train", "--help-all")
    headings = ["The run", "Data", "Network", "Schedule", "Noise levels", "What is written, and when", "Machine"]
    positions = [shown.index(f"\n{heading}:\n") for heading in headings]
    assert positions == sorted(positions)
    brief = succeed("train", "--help")
    for parameter in train.params:
        assert shown.count(f" {parameter.opts[-1]} ") >= 1, parameter.opts
        assert isinstance(parameter, GroupedOption) or parameter.name == "help_all"
        listed = re.search(rf"\n  {parameter.opts[0]}[ ,]", brief) is not None
        assert listed == (parameter.name in {*FIRST, "help_all"}), parameter.opts
    assert "  min-snr " not in brief
