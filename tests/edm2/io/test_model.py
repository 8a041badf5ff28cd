"""A snapshot loads by itself and equals the saved network; other files are refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import edm2
from edm2.io.model import ASSETS, reconstructed_metadata, resolve
from edm2.networks import Precond, fold
from edm2.post_hoc_ema import SafetensorsSnapshot, SnapshotError, find_snapshots, reconstruct, snapshot_name
from edm2.post_hoc_ema.snapshot import METADATA_KEY
from edm2.training import PixelCodec

METADATA = {"images_seen": 4096, "sigma_rel": 0.1, "codec": PixelCodec().to_json()}


@pytest.fixture
def file(net, tmp_path) -> Path:
    path = tmp_path / "net.safetensors"
    edm2.save(net, path, METADATA)
    return path


def outputs(net: Precond) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, net.config.img_channels, *net.config.size, generator=generator)
    return net(x, torch.tensor([0.5, 3.0]), torch.tensor([1, 7]))


# ------------------------------------------------------------------------------------------------ there and back


def test_loading_returns_what_was_saved(net, file):
    """For inference."""
    loaded = edm2.load(str(file), device="cpu")
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.config == net.config
    assert list(loaded.state_dict()) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(outputs(loaded), outputs(net))


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_storage_becomes_float32_parameters(net, tmp_path, dtype, eps):
    """Parameters are off by their rounding (half a unit in the last place; float16 has subnormal steps of 2^-24),
    buffers not at all."""
    path = tmp_path / "half.safetensors"
    edm2.save(net, path, METADATA, dtype=dtype)
    stored, loaded = load_file(path), edm2.load(path)
    assert loaded.compute_dtype == torch.float32
    assert {p.dtype for p in loaded.state_dict().values()} == {torch.float32}
    for name, parameter in net.named_parameters():
        assert stored[name].dtype == dtype
        ours = loaded.get_parameter(name)
        assert torch.equal(ours, parameter.to(dtype).float()), name
        assert ((ours - parameter).abs() <= eps * parameter.abs() + 2**-25).all(), name
    for name, buffer in net.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer), name
    assert (outputs(loaded) - outputs(net)).abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_loading_in_another_dtype(file, net, dtype):
    loaded = edm2.load(file, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.compute_dtype == dtype
    error = (outputs(loaded) - outputs(net)).abs().max() / outputs(net).abs().max()
    # ten times the rounding of float16 (11 bits), bfloat16 (8 bits) and of the stored float32
    assert error < {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float64: 1e-6}[dtype]
    for name, buffer in net.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer), "Fourier features are not rounded"


def test_a_repository_of_the_hub_is_fetched(net, tmp_path, monkeypatch):
    """Nothing that could be executed is; and a path with a slip in it is not looked for on the hub."""
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        raise ConnectionError("a long story\nof many lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="somebody/photos: no such file") as error:
        edm2.load("somebody/photos")
    assert "\n" not in str(error.value)
    assert asked == [("somebody/photos", ["*.json", "*.safetensors"])]
    (tmp_path / "runs").mkdir()
    for slip in ("runs/photo", "runs/net.safetensors", "else/net.safetensors", "else/net.pkl", "/a/b", "a/b/c"):
        with pytest.raises(FileNotFoundError):
            edm2.load(slip)
    assert len(asked) == 1


def test_metadata_travels(net, unconditional, file, tmp_path):
    """images_seen and sigma_rel matter to reconstruction only. That of one file may be saved with another network,
    which describes itself; what looks like a program stays text."""
    metadata = edm2.read_metadata(file)
    assert metadata["images_seen"] == 4096
    assert metadata["codec"] == json.loads(json.dumps(METADATA["codec"]))
    assert metadata["network"] == json.loads(json.dumps(net.config.to_json()))
    assert all("fourier" in name for name in metadata["buffers"])
    other = tmp_path / "b.safetensors"
    edm2.save(unconditional, other, metadata)
    assert edm2.load(other).config.label_dim == 0
    edm2.save(net, other, {})
    assert torch.equal(outputs(edm2.load(other)), outputs(net))
    rewritten(file, codec="__import__('os').system('false')")
    edm2.load(file)
    assert SafetensorsSnapshot(file).metadata["codec"].startswith("__import__")


def test_saved_files_are_snapshots(net, make_net, tmp_path):
    """They reconstruct: between equal weights there is nothing to average but the same weights."""
    for images_seen in (1000, 2000):
        for sigma_rel in (0.05, 0.1):
            metadata = METADATA | {"images_seen": images_seen, "sigma_rel": sigma_rel}
            edm2.save(net, tmp_path / snapshot_name(images_seen, sigma_rel), metadata)
    snapshots = find_snapshots(tmp_path)
    [state] = reconstruct(snapshots, [0.15])
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6)  # float32 sums of coefficients near 10
    metadata = reconstructed_metadata(snapshots, 2000, 0.15)
    assert metadata["sigma_rel"] == 0.15
    assert metadata["reconstructed_from"] == [[1000, 0.05], [1000, 0.1], [2000, 0.05], [2000, 0.1]]
    earlier = reconstructed_metadata(snapshots, 1000, 0.15)
    assert earlier["reconstructed_from"] == [[1000, 0.05], [1000, 0.1]]
    assert earlier["images_seen"] == 1000


def test_what_cannot_be_saved_leaves_nothing(net, tmp_path):
    with pytest.raises(ValueError, match="folded"):
        edm2.save(fold(net), tmp_path / "folded.safetensors", METADATA)
    with pytest.raises(TypeError):
        edm2.save(net, tmp_path / "net.safetensors", {"codec": object()})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ names


def test_public_names_exist():
    assert set(edm2.__all__) <= set(dir(edm2))
    assert all(getattr(edm2, name) is not None for name in edm2.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = edm2.nonsense


@pytest.mark.skipif(not (ASSETS / "digits8.safetensors").exists(), reason="digits8 has not been made yet")
def test_the_included_network_draws_digits(tmp_path, monkeypatch):
    net = edm2.load("digits8")
    [batch] = edm2.generate(net, range(4), num_steps=2)
    assert batch.samples.shape == (4, 1, 8, 8)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits8").mkdir()  # as after `edm2 train --out digits8`
    assert resolve("digits8") == ASSETS / "digits8.safetensors"


# ------------------------------------------------------------------------------------------------ wrong files


def refused(path: str | Path, error: type[Exception] = SnapshotError) -> str:
    """The message, which must be one line that names the file."""
    with pytest.raises(error) as caught:
        edm2.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def rewritten(file: Path, **metadata: Any) -> Path:
    """The file with other metadata."""
    text = json.dumps(edm2.read_metadata(file) | metadata)
    save_file(load_file(file), file, metadata={METADATA_KEY: text})
    return file


def test_missing_and_truncated_files(tmp_path, file):
    assert "no such file" in refused(tmp_path / "nothing.safetensors", FileNotFoundError)
    assert "folder" in refused(tmp_path, FileNotFoundError)
    refused("no-such-network", FileNotFoundError)
    data = file.read_bytes()
    for part in (0, 0.001, 0.3, 0.99):
        file.write_bytes(data[: int(part * len(data))])
        refused(file)


def test_foreign_files_and_tensors(file, tmp_path):
    text, foreign, pickled = (tmp_path / name for name in ("text.safetensors", "foreign.safetensors", "network.pkl"))
    text.write_text("not a network, but long enough to hold a header of eight bytes")
    refused(text)
    save_file({"weight": torch.zeros(3)}, foreign)
    assert "not written by edm2" in refused(foreign)
    torch.save({"weight": torch.zeros(3)}, pickled)
    refused(pickled)
    tensors, text = load_file(file), {METADATA_KEY: json.dumps(edm2.read_metadata(file))}
    first = tensors.pop("unet.out_conv.weight")
    save_file(tensors, file, metadata=text)
    assert "unet.out_conv.weight" in refused(file)
    save_file(tensors | {"unet.out_conv.weight": first, "surplus": first.clone()}, file, metadata=text)
    assert "surplus" in refused(file)


@pytest.mark.parametrize(
    ("complaint", "networks"),
    [
        ("does not describe a network", ["a string", 5, None, [], {}]),
        ("does not describe a network", [{"flavor": "mystery"}, {"config": "Z"}, {"dropout": None}]),
        ("does not describe a network", [{"img_resolution": value} for value in ("8", [8], 7)]),
        ("does not describe a network", [{"img_channels": -3}, {"model_channels": 1.5}, {"num_blocks": 1.0}]),
        ("does not describe a network", [{"channel_mult": 5}, {"channel_mult": []}, {"channel_mult_noise": -1}]),
        ("does not describe a network", [{"channel_mult_emb": 0.1}, {"channels_per_head": 3}, {"sigma_data": "half"}]),
        ("does not describe a network", [{"concat_balance": {}}, {"concat_balance": "0.5"}]),
        ("do not fit", [{"model_channels": 16}, {"num_blocks": 2}, {"img_channels": 1}]),
        ("do not fit", [{"label_dim": 0}, {"label_dim": 11}]),
        ("num_blocks=1000000000", [{"num_blocks": 10**9}]),  # would keep `load` busy for hours
    ],
    ids=str,
)
def test_networks_that_nobody_can_build_or_of_other_tensors(file, complaint, networks):
    described = edm2.read_metadata(file)["network"]
    for network in networks:
        wrong = described | network if isinstance(network, dict) and network else network
        assert complaint in refused(rewritten(file, network=wrong)), network
