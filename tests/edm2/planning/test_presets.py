"""Presets are the paper's, and the defaults are those of all of its models."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from golden_data import table

from edm2.planning.costs import count_parameters, estimate_memory
from edm2.planning.plan import plan_run
from edm2.planning.presets import PRESETS, learning_rate
from edm2.training import ArrayDataset, TrainingConfig


def official(golden) -> dict[str, dict[str, Any]]:
    presets = table(golden, "tables/presets.json")["presets"]
    assert presets
    return presets


def planned(name: str, values: dict[str, Any], conditional: bool = True) -> TrainingConfig:
    """A run on data of the size and classes that the preset is for."""
    side = values["img_resolution"]
    images = torch.zeros(1, values["img_channels"], side, side, dtype=torch.uint8)
    names = [str(k) for k in range(values["label_dim"])]
    dataset = ArrayDataset(images, torch.zeros(1, dtype=torch.int64), names)
    return plan_run(dataset, "data.zip", "run", name, conditional, {})


def test_presets_equal_the_official_ones_field_by_field(golden):
    """Learning rates are 0.01 sqrt(192 / width), within 5 %: the rule that the small presets take over."""
    assert set(official(golden)) == {name for name in PRESETS if name.startswith("edm2-img")}
    for name, values in official(golden).items():
        config = planned(name, values)
        ours = {
            "duration": config.duration,
            "batch": config.batch_size,
            "channels": config.network.model_channels,
            "lr": config.ref_lr,
            "decay": config.ref_batches,
            "dropout": config.network.dropout,
            "P_mean": config.P_mean,
            "P_std": config.P_std,
            "img_resolution": config.network.img_resolution,
            "img_channels": config.network.img_channels,
            "label_dim": config.network.label_dim,
        }
        assert ours == {field: values[field] for field in ours}, name
        assert values["lr"] == pytest.approx(learning_rate(values["channels"]), rel=0.05), name


def test_presets_build_networks_of_the_official_size(golden):
    for name, values in official(golden).items():
        for conditional, field in ((True, "num_params"), (False, "num_params_unconditional")):
            assert count_parameters(planned(name, values, conditional).network) == values[field], (name, field)


def test_defaults_are_what_all_official_presets_share(golden):
    common = table(golden, "tables/presets.json")["common"]
    for name, values in official(golden).items():
        config = planned(name, values)
        ours = {
            "adam_betas": list(config.betas),
            "rampup_Mimg": config.rampup_images / 1e6,
            "ema_stds": list(config.sigma_rels),
            "status_nimg": config.status_every,
            "snapshot_nimg": config.snapshot_every,
            "checkpoint_nimg": config.checkpoint_every,
        }
        assert ours == {field: common[field] for field in ours}, name
        network = json.loads(json.dumps(config.network.to_json()))  # with lists for tuples
        shared = {field: value for field, value in common.items() if field in network}
        assert len(shared) == 12
        assert {field: network[field] for field in shared} == shared, name
        assert config.snapshot_precision == "fp16"  # as published
        assert not config.xflip
        assert config.label_dropout == 0
        assert not config.stratified_sigma
        assert not config.standardize


SMALL = [name for name in PRESETS if "small" in name]


def small_run(name: str, images: int = 4_000, side: int = 32, **choices: Any) -> TrainingConfig:
    """Run on square data, as latents where the preset is for those."""
    data = torch.zeros(1, 8, side, side) if "latent" in name else torch.zeros(1, 3, side, side, dtype=torch.uint8)
    dataset = ArrayDataset(data.expand(images, -1, -1, -1))
    return plan_run(dataset, "data.zip", "run", name, None, choices)


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_follow_the_documented_rules(name):
    """docs/settings.md: 1,000 visits per image between 2 Mi and 16 Mi, less dropout with more images, 32 snapshots."""
    expected = {1_000: (2 << 20, 0.2), 4_000: (31 << 17, 0.2), 10_000: (77 << 17, 0.1), 100_000: (16 << 20, 0.05)}
    for images, (duration, dropout) in expected.items():
        config = small_run(name, images)
        assert (config.duration, config.network.dropout) == (duration, dropout)
        assert config.duration // config.snapshot_every == 32
        assert config.holdout == min(images // 10, 500)
        assert config.stratified_sigma
        assert config.ref_lr == learning_rate(config.network.model_channels)


@pytest.mark.parametrize("name", SMALL)
def test_what_follows_from_other_settings_follows_the_users_too(name):
    config = small_run(name, model_channels=48, duration=64 << 10)
    assert config.ref_lr == 0.02
    assert config.snapshot_every == 2 << 10
    assert small_run(name, model_channels=48, ref_lr=0.5, snapshot_every=999).snapshot_every == 999
    assert small_run(name, model_channels=48, ref_lr=0.5).ref_lr == 0.5
    assert small_run(name, batch_size=100).duration == 4_063_300  # the next whole number of steps
    assert small_run(name, batch_size=100).micro_batch in (10, 25, 50)  # the most that divide it, up to the preset's
    assert small_run(name, batch_size=16).micro_batch == 16


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_fit_the_memory_that_they_are_for(name):
    """8 GB, of which a desktop takes one, on CUDA in bf16, at the largest size that the preset is for."""
    config = small_run(name, precision="bf16")
    network = dataclasses.replace(config.network, img_resolution=32 if name.endswith("32") else 64)
    config = dataclasses.replace(config, network=network, device="cuda")
    assert estimate_memory(config).total < 7e9


@pytest.mark.parametrize(("name", "side"), [("edm2-small-32", 28), ("edm2-small-64", 48), ("edm2-latent-small", 16)])
def test_small_presets_take_any_size_that_they_can_halve(name, side):
    config = small_run(name, 40, side=side)
    assert config.network.img_resolution == side
    assert count_parameters(config.network) > 0
