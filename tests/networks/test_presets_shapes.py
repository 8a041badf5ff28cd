"""The official sizes, built without memory: names, shapes and counts of their published files."""

from typing import Any

import torch
from golden_data import table

from edm2.networks import NetworkConfig, Precond, build_network


def official_config(golden, preset: str, **changes: Any) -> NetworkConfig:
    """Configuration of an official preset from the table and its common settings."""
    presets = table(golden, "tables/presets.json")
    values = presets["presets"][preset]
    shared = {name: x for name, x in presets["common"].items() if name in NetworkConfig.__dataclass_fields__}
    own = {name: values[name] for name in ("img_resolution", "img_channels", "label_dim", "dropout")}
    return NetworkConfig.from_json(shared | own | {"model_channels": values["channels"]} | changes)


def without_memory(config: NetworkConfig) -> Precond:
    with torch.device("meta"):
        return build_network(config)


def count(net: Precond) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_parameter_counts_of_all_official_sizes(golden):
    for preset, expected in table(golden, "tables/presets.json")["presets"].items():
        net = without_memory(official_config(golden, preset))
        assert count(net) == expected["num_params"], preset
        assert len(list(net.parameters())) == expected["num_parameter_tensors"], preset
        assert len(list(net.buffers())) == expected["num_buffers"], preset
        unconditional = without_memory(official_config(golden, preset, label_dim=0))
        assert count(unconditional) == expected["num_params_unconditional"], preset


def test_parameter_names_and_shapes_of_published_files(golden):
    files = sorted((golden / "tables").glob("parameter_shapes_*.json"))
    assert files
    for file in files:
        preset = file.stem.removeprefix("parameter_shapes_")
        net, expected = without_memory(official_config(golden, preset)), table(golden, f"tables/{file.name}")
        assert [[name, list(x.shape)] for name, x in net.named_parameters()] == expected["parameters"], preset
        assert sorted([name, list(x.shape)] for name, x in net.named_buffers()) == sorted(expected["buffers"]), preset


def test_defaults_are_those_of_the_s_size(golden):
    """`NetworkConfig(64, 4, 1000)` is EDM2-S, but for nothing."""
    assert NetworkConfig(64, 4, 1000) == official_config(golden, "edm2-img512-s")
