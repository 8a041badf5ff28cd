"""`edm2 train --budget`: a run for an amount of time."""

from pathlib import Path

import pytest
from command_line import complaint, edm2, succeed, write_images

from edm2.training import read_run_config


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", (8, 8), 40)


@pytest.mark.slow
def test_a_budget_is_measured_once_and_can_be_moved(photos, tmp_path):
    tiny = ("--channels", 8, "--batch", 8, "--device", "cpu", "--workers", 0, "--config", "G")
    out, asked = tmp_path / "run", ("train", "--data", photos, *tiny, "--out", tmp_path / "run")
    assert "Measuring speed" in succeed(*asked, "--budget", "1s")
    first = read_run_config(out)
    assert first.budget == 1
    assert first.duration >= 8
    assert first.preset == "edm2-tiny"
    assert "Measuring speed" not in succeed(*asked, "--budget", "1s")
    assert read_run_config(out) == first
    succeed(*asked, "--duration", first.duration + 80)
    moved = read_run_config(out)
    assert moved.duration == first.duration + 80
    assert (moved.rampup_images, moved.ref_batches, moved.holdout) == (
        first.rampup_images, first.ref_batches, first.holdout,
    )  # fmt: skip
    assert "leave out --duration" in complaint(edm2(*asked, "--budget", "1s", "--duration", 64).err)


def test_an_output_folder_that_is_taken_is_refused_before_anything_is_measured(photos, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    refused = edm2("train", "--data", photos, "--budget", "1s", "--out", tmp_path / "taken")
    assert "is not empty and holds no run" in complaint(refused.err)
    assert "Measuring" not in refused.out
