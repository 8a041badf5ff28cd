"""One trained run, shared by every test of the command line."""

from pathlib import Path

import pytest
from command_line import TINY, succeed
from tiny_vae import save_tiny_vae

from edm2.io.model import load, read_metadata, save
from edm2.networks import Precond


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 512 images; tests that change a run work on a copy of it."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    succeed("train", "--data", "digits", "--duration", 512, *TINY, "--out", out)
    return out


@pytest.fixture
def network(tiny_run: Path) -> Path:
    """Raw weights of the shared run: a network that knows ten classes of 8x8 digits, a little."""
    return tiny_run / "raw-weights.safetensors"


@pytest.fixture(scope="session")
def outspoken_network(tiny_run: Path) -> Path:
    """The same with all gains at 1 (training starts at 0): what it draws shows the class, the seed and the guide.

    Its metadata say that it was trained to do without labels now and then.
    """
    weights = tiny_run / "raw-weights.safetensors"
    net = load(weights)
    for parameter in net.parameters():
        if parameter.ndim == 0:
            parameter.fill_(1)
    path = tiny_run.parent / "outspoken.safetensors"
    metadata = read_metadata(weights)
    save(net, path, metadata | {"training": metadata["training"] | {"label_dropout": 0.1}})
    return path


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained VAE that halves the resolution."""
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Number of images of every evaluation of a network, and whether any had a label."""
    seen = []
    forward = Precond.forward

    def watched(self, x, sigma, class_labels=None, return_logvar=False):
        seen.append((len(x), class_labels is not None))
        return forward(self, x, sigma, class_labels, return_logvar)

    monkeypatch.setattr(Precond, "forward", watched)
    return seen
