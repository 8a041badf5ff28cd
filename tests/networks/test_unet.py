"""Whole networks against golden outputs, in float32 and float64, and names, shapes and counts of published files.

Gradients and losses are in tests/training/loss/test_objective.py.
"""

from collections.abc import Iterator
from typing import Any

import torch
from golden_data import arrays, max_rel, select, table
from torch import Tensor

from edm2.networks import NetworkConfig, Precond, build_network


def golden_networks(golden) -> Iterator[tuple[dict[str, Any], Precond, dict[str, Tensor]]]:
    """Description, network in evaluation mode and arrays, of each golden network that is in this set."""
    found = [name for name in table(golden, "net/net.json") if (golden / "net" / f"{name}.safetensors").is_file()]
    assert found
    for name in found:
        data = arrays(golden, f"net/{name}.safetensors")
        description = table(golden, "net/net.json")[name]
        net = build_network(NetworkConfig.from_json(description["config"]))
        net.load_state_dict(select(data, "state"))
        yield description, net.eval(), data


@torch.no_grad()
def test_output_and_uncertainty_golden(golden):
    """Also image by image, since noise levels from 0.002 to 80 make their magnitudes differ 100-fold and more."""
    for description, net, data in golden_networks(golden):
        D_x, u = net(data["in/x"], data["in/sigma"], data.get("in/labels"), return_logvar=True)
        assert D_x.dtype == u.dtype == torch.float32
        assert u.shape == (len(D_x), 1, 1, 1)
        for ours, expected in [(D_x, data["eval/D_x"]), *zip(D_x, data["eval/D_x"], strict=True)]:
            assert max_rel(ours, expected) <= 5e-6, description["config"]
        assert max_rel(u.reshape(data["eval/logvar"].shape), data["eval/logvar"]) <= 5e-6, description["config"]
        assert torch.equal(net(data["in/x"], data["in/sigma"], data.get("in/labels")), D_x)  # u is not needed for it

        if "eval/D_x_labels_none" in data:
            assert max_rel(net(data["in/x"], data["in/sigma"]), data["eval/D_x_labels_none"]) <= 5e-6
        sigma = data["in/sigma"].flatten()[3]
        for scalar in (sigma, sigma.item(), sigma[None]):
            assert max_rel(net(data["in/x"], scalar, data.get("in/labels")), data["eval/D_x_scalar_sigma3"]) <= 5e-6


@torch.no_grad()
def test_float64_golden(golden):
    """A network in float64 computes in float64 throughout. 1e-10: rounding, enlarged by sensitive Fourier angles."""
    for description, net, data in golden_networks(golden):
        raw: list[Tensor] = []
        net.double().unet.register_forward_hook(lambda module, args, output, raw=raw: raw.append(output))
        inputs = [data.get(f"in/{name}") for name in ("x", "sigma", "labels")]
        x, sigma, labels = (None if tensor is None else tensor.double() for tensor in inputs)
        D_x, u = net(x, sigma, labels, return_logvar=True)
        assert D_x.dtype == u.dtype == torch.float64
        for ours, name in ((D_x, "D_x"), (raw[0], "F_x"), (u, "logvar")):
            expected = data[f"eval/{name}_fp64"]
            assert max_rel(ours.reshape(expected.shape), expected) <= 1e-10, (description["config"], name)


def test_names_shapes_and_counts_golden(golden):
    """In order, because optimizer states of published checkpoints refer to parameters by position."""
    for description in table(golden, "net/net.json").values():
        net = without_memory(NetworkConfig.from_json(description["config"]))
        assert [name for name, _ in net.named_parameters()] == description["parameter_names"]
        assert sorted(name for name, _ in net.named_buffers()) == sorted(description["buffer_names"])
        assert {name: list(x.shape) for name, x in net.state_dict().items()} == description["shapes"]
        assert count(net) == description["num_params"]


# The official sizes, built without memory


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
