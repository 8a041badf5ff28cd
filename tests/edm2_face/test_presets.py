"""Presets are the paper's, and the defaults are what its models share."""

from typing import Any

import pytest
import torch
from golden_data import table

from edm2.networks import NetworkConfig, build_network
from edm2.planning import plan_run
from edm2.presets import PRESETS
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


def count(config: NetworkConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(config).parameters())


def test_every_official_preset_is_there(golden):
    assert set(official(golden)) == {name for name in PRESETS if name.startswith("edm2-")}


def test_presets_equal_the_official_ones_field_by_field(golden):
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


def test_presets_build_networks_of_the_official_size(golden):
    for name, values in official(golden).items():
        assert count(planned(name, values).network) == values["num_params"], name
        assert count(planned(name, values, conditional=False).network) == values["num_params_unconditional"], name


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
        network = config.network.to_json()
        shared = {field: value for field, value in common.items() if field in network}
        assert len(shared) == 12
        assert {field: _listed(network[field]) for field in shared} == shared, name
        assert config.snapshot_precision == "fp16"  # as published
        assert not config.xflip
        assert config.label_dropout == 0


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_fields_that_exist(name):
    """And fields of the right place: nothing of the data, nothing of the run folder."""
    preset = PRESETS[name]
    assert set(preset.network) <= set(NetworkConfig.__dataclass_fields__) - {
        "img_resolution",
        "img_channels",
        "label_dim",
    }
    assert set(preset.training) <= set(TrainingConfig.__dataclass_fields__) - {"data", "out", "network", "preset"}
    assert preset.summary


def test_learning_rates_follow_the_width(golden):
    """0.01 sqrt(192 / width), within 5 %: the rule by which `small` was chosen."""
    for name in [*official(golden), "small"]:
        width = PRESETS[name].network.get("model_channels", 192)
        assert PRESETS[name].training["ref_lr"] == pytest.approx(0.01 * (192 / width) ** 0.5, rel=0.05), name
