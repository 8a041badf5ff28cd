"""Networks small enough to sample from in a moment, whose gains are not zero as at initialization."""

import pytest
import torch

from edm2.networks import NetworkConfig, Precond, build_network


def tiny_network(seed: int = 0, label_dim: int = 10, img_channels: int = 3, img_resolution: int = 8) -> Precond:
    """A denoiser of random weights and gains, in evaluation mode."""
    config = NetworkConfig(
        img_resolution,
        img_channels,
        label_dim,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        channels_per_head=8,
        logvar_channels=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_network(config)
        for name, parameter in net.named_parameters():
            if name.endswith("gain"):
                torch.nn.init.uniform_(parameter, 0.5, 1.0)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_net():
    """`make_net(seed, label_dim, ...)` builds a tiny network."""
    return tiny_network


@pytest.fixture(scope="session")
def net() -> Precond:
    """Ten classes, 3x8x8."""
    return tiny_network()


@pytest.fixture(scope="session")
def unconditional() -> Precond:
    """No classes, 3x8x8; other weights."""
    return tiny_network(seed=1, label_dim=0)


@pytest.fixture
def nothing_is_executed(tmp_path, monkeypatch):
    """Hostile pickles all create a file PWNED in the current folder: here one that must stay empty."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == []
