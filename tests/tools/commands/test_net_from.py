"""Samples and scores of a network of the user's own: --net-from."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import complaint, edm2, succeed

from edm2 import generate, read_metadata
from edm2.io.model import load, load_to_sample
from edm2.post_hoc_ema import write_snapshot
from edm2.sampling.external import DrawnImages
from edm2.training import Trainer, TrainingConfig, codec_from_json

MODULE = """
import torch

class Own(torch.nn.Module):  # a mean image per class
    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Embedding(11, 64)
        self.mean.weight.data.zero_()

    def forward(self, x, sigma, labels=None):
        labels = torch.full([len(x)], -1, device=x.device) if labels is None else labels
        mean, sigma = self.mean(labels + 1).reshape(x.shape), sigma.reshape(-1, 1, 1, 1)
        return (0.25 * x + sigma**2 * mean) / (0.25 + sigma**2)

def no_module():
    return "a network"
"""
FAST = ("--steps", 3, "--device", "cpu")
OWN = ("--net-from", "my_own_network:Own")


def own_network() -> torch.nn.Module:
    return importlib.import_module("my_own_network").Own()


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network that only the module beside it can make."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_own_network.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
        settings = {"weighting": "edm", "batch_size": 64, "ref_lr": 0.03, "rampup_images": 0, "workers": 0}
        intervals = {"duration": 1024, "snapshot_every": 256, "sample_every": None}
        config = TrainingConfig(data="digits", out=str(folder / "run"), network=None, **settings, **intervals)
        Trainer(config, net=own_network()).run()
    return folder / "run"


@pytest.fixture(autouse=True)
def in_its_folder(own_run: Path, monkeypatch) -> None:
    """The current folder holds the module, and need not be on sys.path."""
    monkeypatch.chdir(own_run.parent)


def test_generate_draws_its_images_by_seed_and_class(own_run: Path, tmp_path: Path):
    succeed("reconstruct", own_run, "--std", 0.08, "--out", tmp_path)
    [snapshot] = tmp_path.glob("*.safetensors")
    succeed("generate", snapshot, *OWN, *FAST, "--seeds", "0-3", "--class", 3, "--npz", tmp_path / "images.npz")
    shown = np.load(tmp_path / "images.npz")
    assert shown["arr_0"].shape == (4, 8, 8, 1)
    assert shown["arr_1"].tolist() == [3] * 4
    net = load_to_sample(snapshot, make_net=own_network)
    [batch] = generate(net, range(4), 3, num_steps=3)
    decoded = codec_from_json(read_metadata(snapshot)["codec"])
    assert np.array_equal(decoded.to_display(decoded.decode(batch.samples)).permute(0, 2, 3, 1), shown["arr_0"])
    assert torch.equal(net.net.mean.weight, load(snapshot, net=own_network()).mean.weight)
    guided = (*OWN, *FAST, "--guide", own_run / "raw-weights.safetensors", "--guidance", 2, "--precision", "fp32")
    succeed("generate", snapshot, *guided, "--grid", tmp_path / "grid.png")


def test_sweep_scores_its_averages_and_names_commands_that_draw(own_run: Path, tmp_path: Path):
    options = ("--samples", 20, *FAST, "--guide", own_run, "--guide-at", 512, "--guidance", "1,2", "--out", tmp_path)
    shown = succeed("sweep", own_run, *OWN, "--std", "0.05,0.08", *options)
    assert "4 points, 80 images" in shown
    assert shown.count("<- best") == 1
    generates = [line for line in shown.splitlines() if line.startswith("  edm2 generate")]
    assert "--net-from my_own_network:Own" in generates[0]
    assert "--balanced" in generates[0]


def test_another_program_of_the_same_name_draws_anew(own_run: Path, tmp_path: Path, monkeypatch):
    """Scores are known, and images continued, by what the module holds, not by its name."""
    module = own_run.parent / "my_own_network.py"
    scored, drawn = tmp_path / "sweep.jsonl", tmp_path / "images"
    sweep = ("sweep", own_run, *OWN, *FAST, "--std", 0.05, "--samples", 10, "--out", tmp_path)
    draw = ("generate", own_run / "raw-weights.safetensors", *OWN, *FAST, "--out", drawn)
    lines = []
    for text in (MODULE, MODULE, MODULE.replace("0.25 * x", "0.24 * x")):
        module.write_text(text)
        succeed(*sweep)
        lines.append(len(scored.read_text().splitlines()))
        result = edm2(*draw, "--seeds", "0-1")
    assert lines[0] == lines[1] < lines[2]
    assert "made with other settings (net_from in generation.json)" in complaint(result.err)
    module.write_text(MODULE)


def test_snapshots_say_what_images_their_network_draws(own_run: Path, tmp_path: Path):
    assert "network:      the user's own" in succeed("info", own_run)
    assert "images:       img_resolution=(8, 8)" in succeed("info", own_run / "raw-weights.safetensors")
    metadata = read_metadata(own_run / "raw-weights.safetensors")
    assert DrawnImages.from_metadata(metadata) == DrawnImages((8, 8), 1, 10)
    silent = {name: value for name, value in metadata.items() if name != "images"}
    write_snapshot(tmp_path / "silent.safetensors", own_network().state_dict(), silent)
    result = edm2("generate", tmp_path / "silent.safetensors", *OWN, *FAST, "--grid", tmp_path / "grid.png")
    assert "silent.safetensors: does not say which images its network draws" in complaint(result.err)


MISTAKES = {
    "not given": ((), "--net-from module:callable"),
    "no such module": (("--net-from", "my_other_network:Own"), "my_other_network:Own: cannot be imported"),
    "no such name": (("--net-from", "my_own_network:Other"), "my_own_network:Other: cannot be imported"),
    "no function": (("--net-from", "my_own_network:torch"), "is no function"),
    "no module": (("--net-from", "my_own_network:no_module"), "makes a str, not a torch.nn.Module"),
    "another network": (("--net-from", "torch.nn:Identity"), "holds tensors of another network"),
    "a network that describes itself": (OWN, "describes its network itself; leave out --net-from"),
    "half precision": ((*OWN, "--precision", "bf16"), "--precision bf16 is for networks that edm2 builds"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, own_run: Path, tiny_run: Path, tmp_path: Path):
    options, message = MISTAKES[name]
    run = tiny_run if name == "a network that describes itself" else own_run
    for command, source in (("sweep", run), ("generate", run / "raw-weights.safetensors")):
        result = edm2(command, source, "--out", tmp_path / "out", *options, *FAST)
        assert result.code != 0
        assert message in complaint(result.err)
        assert not (tmp_path / "out").exists()
