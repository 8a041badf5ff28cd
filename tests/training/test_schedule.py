"""The learning rate over a run, and distillation in its configuration."""

import dataclasses
import json

import pytest
from tiny_run import tiny_config

from edm2.training.config import TrainingConfig
from edm2.training.field_types import mistyped_fields
from edm2.training.schedule import inverse_sqrt_lr
from edm2.training.settings import DistillationConfig

RATE = {"batch_size": 8, "ref_lr": 0.02, "ref_batches": 10, "rampup_images": 16}


def test_a_cooldown_multiplies_the_rate_down_to_zero_at_the_end():
    """Linearly, and only there; without one the rate is the paper's (Eq. 67)."""
    cooled = {t: inverse_sqrt_lr(t, **RATE, cooldown_images=40, duration=200) for t in range(0, 201, 8)}
    for t, rate in cooled.items():
        assert rate == pytest.approx(inverse_sqrt_lr(t, **RATE) * min((200 - t) / 40, 1))
    assert cooled[200] == 0


def distillation(**changes) -> DistillationConfig:
    return DistillationConfig(contents="abc", codec={"kind": "pixels", "mean": [1.0]}, interval=(0.1, 2.0), **changes)


def test_a_distillation_is_stored_with_its_run(tmp_path):
    """Others are as they were; the teacher may move, but nothing else may change."""
    config = tiny_config(tmp_path)
    assert not {"distillation", "teacher", "guide", "cooldown_images"} & config.to_json().keys()
    distilled = dataclasses.replace(config, distillation=distillation(anchor=0), teacher="a.safetensors")
    read = TrainingConfig.from_json(json.loads(json.dumps(distilled.to_json())))
    assert read == distilled
    assert mistyped_fields(read) == []
    assert not read.differences(dataclasses.replace(distilled, teacher="moved.safetensors"))
    [(name, ours, theirs)] = read.differences(dataclasses.replace(distilled, distillation=distillation(anchor=0.5)))
    assert (name, ours, theirs) == ("distillation.anchor", 0, 0.5)
    assert read.differences(config)


@pytest.mark.parametrize(
    ("settings", "abilities"),
    [
        ({}, ("denoise", "map")),
        ({"anchor": 1}, ("denoise",)),
        ({"anchor": 0}, ("map",)),
        ({"anchor": 0, "to_zero": 1}, ("consistency",)),
        ({"to_zero": 1}, ("denoise", "consistency")),
    ],
)
def test_what_is_trained_is_what_it_can_do(settings, abilities):
    assert distillation(**settings).abilities == abilities


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda out: distillation(derivative="exact"), "derivative='exact' must be one of jvp, difference"),
        (lambda out: distillation(anchor=2), "anchor=2 must lie between 0 and 1"),
        (lambda out: distillation(warmup_images=-1), "warmup_images=-1 must not be negative"),
        (lambda out: tiny_config(out, cooldown_images=-1), "cooldown_images=-1 must not be negative"),
        (
            lambda out: tiny_config(out, distillation=distillation(derivative="jvp"), shard=True),
            "does not work with shard",
        ),
        (lambda out: tiny_config(out, distillation=distillation(derivative="jvp"), compile=True), "with compile"),
    ],
)
def test_what_cannot_be_is_one_line(act, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        act(tmp_path)
