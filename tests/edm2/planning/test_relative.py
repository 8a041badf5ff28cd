"""Runs of any length: settings as parts of a run, and advice on those that cannot work."""

from dataclasses import replace

import pytest
import torch

from edm2.planning.plan import default_preset, plan_run
from edm2.planning.presets import PRESETS
from edm2.planning.probe import guessed_speed
from edm2.planning.relative import advice, duration_within
from edm2.training import ArrayDataset
from edm2.training.settings import DistillationConfig


def images(count: int = 4000, size: int = 16) -> ArrayDataset:
    return ArrayDataset(torch.zeros(count, 3, size, size, dtype=torch.uint8))


def planned(duration: int, count: int = 4000, preset: str = "edm2-tiny", **choices):
    return plan_run(
        images(count), "photos", "out", preset, None, {"duration": duration, "device": "cpu", **choices}, relative=True
    )


@pytest.mark.parametrize("preset", ["edm2-tiny", "edm2-small-32", "edm2-small-64"])
@pytest.mark.parametrize("duration", [5_120, 160_000, 16 << 20])
def test_a_run_of_any_length_gets_through_its_schedule(preset, duration):
    config = planned(duration, preset=preset)
    assert config.duration >= duration
    assert config.duration % config.batch_size == 0
    assert config.rampup_images <= config.duration / 20
    assert config.ref_batches * config.batch_size <= max(config.duration / 5, config.batch_size)
    assert config.holdout <= 400
    assert 32 <= config.duration / config.snapshot_every < 33
    assert advice(config, 4000) == [] or duration == 5_120


def test_explicit_options_win_and_named_presets_stay_as_listed():
    config = planned(160_000, rampup_images=7, holdout=11)
    assert (config.rampup_images, config.holdout) == (7, 11)
    many = planned(160_000, holdout=400)  # measured less often, so that it takes no more time
    assert many.holdout_every > config.holdout_every
    assert advice(many, 4000) == []
    listed = plan_run(images(), "photos", "out", "edm2-small-32", None, {"duration": 1 << 20, "device": "cpu"})
    assert listed.rampup_images == PRESETS["edm2-small-32"].training["rampup_images"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rampup_images": 128_000}, "try --rampup 8000"),
        ({"holdout": 500}, "try --holdout 400"),
        ({"holdout_every": 1000}, "measuring held-out images takes about"),
        ({"sample_every": 2000}, "drawing samples takes about"),
        ({"duration": 64 * 400_000}, "learns them by heart"),
    ],
)
def test_what_cannot_work_is_said_with_a_better_value(changes, named):
    [line] = advice(replace(planned(160_000), **changes), 4000)
    assert named in line
    assert advice(planned(160_000), 4000) == []


def test_a_budget_leaves_time_for_more_than_steps():
    assert duration_within(1000, 64, 64) == 900 * 64
    assert duration_within(0.1, 1, 64) == 64


def test_the_data_and_the_device_choose_the_preset():
    assert default_preset(images(), "photos", "cpu") == "edm2-tiny"
    assert default_preset(images(), "photos", "cuda") == "edm2-small-32"
    assert default_preset(images(size=128), "photos", "cpu") == "edm2-small-64"
    assert default_preset(images(), "digits", "cpu") == "digits8"


def test_a_guess_of_speed_is_a_speed():
    assert 0.1 < guessed_speed(planned(160_000)) < 1e6


def test_grids_of_a_flow_map_take_little_time():
    config = planned(160_000, sample_every=2000)
    assert any("drawing samples" in line for line in advice(config, 4000))
    distilled = replace(config, distillation=DistillationConfig(contents="digest"))
    assert not any("drawing samples" in line for line in advice(distilled, 4000))
