"""The guide of a run: two thirds of the width, a sixteenth of the images, everything else the run's."""

from dataclasses import replace

import pytest
import torch
from tiny_run import tiny_config

from edm2.networks import NetworkConfig, build_network
from edm2.planning.guide import guide_config, narrower
from edm2.training.settings import DistillationConfig


@pytest.mark.parametrize(
    ("width", "per_head", "guide"),
    [(192, 64, 128), (256, 64, 192), (64, 64, 48), (96, 64, 64), (32, 32, 16), (16, 16, 16), (8, 8, 8)],
)
def test_the_next_smaller_width_is_a_multiple_of_16_that_divides_into_heads(width, per_head, guide):
    network = NetworkConfig(32, 3, 10, model_channels=width, channels_per_head=per_head, attn_resolutions=(16, 8))
    assert narrower(network) == guide
    with torch.device("meta"):
        build_network(replace(network, model_channels=guide))


def test_a_guide_is_the_run_narrower_and_shorter():
    config = tiny_config("run", duration=6400, dropout=0.1, ref_lr=0.01)
    config = replace(config, network=replace(config.own_network, model_channels=32))
    guide = guide_config(config, "guide")
    assert (guide.duration, guide.own_network.model_channels) == (400, 16)
    assert guide.ref_lr == pytest.approx(0.01 * 2**0.5), "the rate follows the width"
    assert guide.duration // guide.snapshot_every >= 32, "several training times to choose from"
    changed = {name for name, _, _ in guide.differences(config)}
    assert changed == {"network.model_channels", "ref_lr"}
    assert (guide.data, guide.seed, guide.own_network.dropout) == (config.data, config.seed, 0.1)
    assert guide_config(config, "guide", channels=24, duration=1500).duration == 1504, "whole steps"


def test_a_cooldown_is_as_long_a_part_of_the_guides_run():
    """Else a guide would only ever see the end of it."""
    config = tiny_config("run", duration=6400, cooldown_images=1600)
    assert guide_config(config, "guide").cooldown_images == 100


def test_a_distilled_run_has_no_guide_of_its_own():
    config = replace(tiny_config("run"), distillation=DistillationConfig(contents=""))
    with pytest.raises(ValueError, match="guide its teacher"):
        guide_config(config, "guide")


@pytest.mark.parametrize("duration", [1601, 6400, 0, -8])
def test_a_guide_that_is_trained_as_well_as_the_run_is_refused(duration):
    with pytest.raises(ValueError, match="at most a fourth, 1,600"):
        guide_config(tiny_config("run", duration=6400), "guide", duration=duration)
