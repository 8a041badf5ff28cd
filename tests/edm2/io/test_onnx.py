"""An exported network computes what PyTorch computes, for any number of images, and tells how to use it."""

import builtins
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import complaint, edm2, half_written
from documentation import ROOT, blocks

import edm2 as package
from edm2.io import onnx as export
from edm2.io.onnx import ExportError, NamedInputs, example_inputs, export_onnx
from edm2.networks import NetworkConfig, Precond, build_network, fold
from edm2.networks.conditions import ImageCondition, ScalarCondition, TokenCondition, VectorCondition, noise_level
from edm2.sampling.guided_network import GuidedNetwork
from edm2.training import codec_from_json

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about its exporter


@pytest.fixture(autouse=True, scope="module")
def packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)


LOWRES = ImageCondition("lowres", 1, noise=0.5, dropout=0.1)
CONDITIONS = (
    VectorCondition("attributes", 3, dropout=0.1),
    ScalarCondition("age", mean=(40.0,), std=(12.0,), dropout=0.1),
    LOWRES,
    noise_level(LOWRES),
    TokenCondition("caption", 6, length=9, dropout=0.1),
)
KINDS = {
    "classes": {"label_dim": 4},
    "unconditional, not square": {"label_dim": 0, "img_resolution": (4, 8)},
    "a flow map": {"label_dim": 4, "target_level": "decoder"},
    "conditions": {"label_dim": 4, "conditions": CONDITIONS},
    "config D": {"label_dim": 4, "config": "D"},
}


def a_network(**changes) -> Precond:
    """A small network whose gains are not 0, as those of a fresh one."""
    size = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "channels_per_head": 8, "logvar_channels": 8}
    size |= {"attn_resolutions": (4,), "img_resolution": 8, "img_channels": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build_network(NetworkConfig(**size | changes))
        for name, parameter in net.named_parameters():
            if name.endswith(("gain", "gate")):
                torch.nn.init.uniform_(parameter, 0.5, 1.0)
    return net.eval().requires_grad_(False)


def run(path: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Output of onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: values.numpy() for name, values in inputs.items()})[0])


def differences(net: Precond, path: Path, counts: tuple[int, ...]) -> Iterator[float]:
    for count in counts:
        inputs = example_inputs(net, count, seed=77)
        yield (run(path, inputs) - NamedInputs(fold(net), list(inputs)[2:])(*inputs.values())).abs().max().item()


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_any_number_of_images(kind: str, tmp_path: Path):
    net = a_network(**KINDS[kind])
    assert export_onnx(net, tmp_path / "net.onnx") < 1e-5
    assert max(differences(net, tmp_path / "net.onnx", (1, 3, 33))) < 1e-5
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert str(ROOT).encode() not in (tmp_path / "net.onnx").read_bytes()  # no path of this machine


@pytest.mark.slow
def test_a_fixed_number_of_images(tmp_path: Path):
    net = a_network(**KINDS["classes"])
    assert export_onnx(net, tmp_path / "net.onnx", batch_size=3) < 1e-5
    assert max(differences(net, tmp_path / "net.onnx", (3,))) < 1e-5
    with pytest.raises(Exception, match="Got: 2 Expected: 3"):
        run(tmp_path / "net.onnx", example_inputs(net, 2))


@pytest.mark.slow
def test_the_page_draws_the_digits_of_edm2_generate(tmp_path: Path, monkeypatch):
    """As the page stands, and to a level of 255; digits have 17 levels, of 16 to 255."""
    monkeypatch.chdir(tmp_path)
    result = edm2("export", "digits8", "digits8.onnx")
    assert result.code == 0, result.err
    (code,) = blocks("python", ROOT / "docs" / "export.md")
    drawn: dict = {}
    exec(compile(code, "docs/export.md", "exec"), drawn)
    (batch,) = package.generate(fold(package.load("digits8")), range(80), batch_size=80)
    assert np.array_equal(drawn["labels"], batch.classes)
    std = codec_from_json(package.read_metadata("digits8")["codec"]).std[0]
    levels_of_255 = np.abs(drawn["samples"] - batch.samples.numpy()) * std * 255 / 16
    assert levels_of_255.max() < 1
    pixels = codec_from_json(package.read_metadata("digits8")["codec"]).decode(batch.samples).numpy()
    assert (drawn["pixels"] != pixels).mean() < 1e-3


@pytest.mark.slow
def test_metadata_and_weights_beside_the_file(tmp_path: Path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(export, "LARGEST_FILE", 1000)
    net = a_network(label_dim=2)
    codec = {"kind": "latents", "vae": "some/vae"}
    export_onnx(net, tmp_path / "net.onnx", {"codec": codec, "data": {"class_names": ["cat", "dog"]}}, batch_size=1)
    assert max(differences(net, tmp_path / "net.onnx", (1,))) < 1e-5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    found = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(found["codec"]) == codec
    assert json.loads(found["class_names"]) == ["cat", "dog"]
    assert [float(found[key]) for key in ("sigma_data", "sigma_min", "sigma_max")] == [0.5, 0.002, 80]


@pytest.mark.slow
def test_an_export_that_computes_something_else_does_not_appear(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    monkeypatch.setattr(export, "LARGEST_FILE", 1000)
    with pytest.raises(ExportError, match="not written"):
        export_onnx(a_network(label_dim=0), tmp_path / "net.onnx", batch_size=1)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_network_of_ours_is_refused(tmp_path: Path):
    net = a_network(label_dim=2)
    guided = package.guided(net, package.without_labels(net), 2.0)
    for other in (guided, GuidedNetwork(net, None, 2.0), torch.nn.Conv2d(1, 1, 1)):
        with pytest.raises(ExportError, match=r"export the network and the guide, .* networks of your own"):
            export_onnx(other, tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="condition sigma"):
        export_onnx(a_network(label_dim=0, conditions=(ScalarCondition("sigma"),)), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "mention"),
    [
        ("export digits8", 2, "OUT.onnx"),
        ("export digits8 net.pt", 2, "net.pt: OUT is a file named *.onnx"),
        ("export digits8 there.onnx", 1, "there.onnx: there already"),
        ("export digits8 there.onnx/net.onnx", 1, "there.onnx"),
        ("export digits8 net.onnx --batch 0", 2, "--batch"),
        ("export gone.safetensors net.onnx", 1, "gone.safetensors"),
        ("export there.onnx net.onnx", 1, "there.onnx"),
        ("export own.safetensors net.onnx", 1, "a network of your own"),
    ],
)
def test_slips_are_one_line(words: str, code: int, mention: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").write_text("something")
    images = {"img_resolution": [8, 8], "img_channels": 1, "label_dim": 0}
    package.post_hoc_ema.write_snapshot(
        "own.safetensors", {"w": torch.zeros(1)}, {"architecture": "external", "images": images}
    )
    result = edm2(*words.split())
    assert result.code == code
    assert mention in complaint(result.err)
    assert Path("there.onnx").read_text() == "something"
    assert not Path("net.onnx").exists()
    assert not half_written(Path())


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch):
    real = builtins.__import__
    monkeypatch.delitem(__import__("sys").modules, "onnxscript", raising=False)
    monkeypatch.setattr(export.importlib, "import_module", lambda name: real("no_such_" + name))
    with pytest.raises(ExportError, match=r"pip install 'edm2\[export\]'"):
        export_onnx(a_network(label_dim=0), tmp_path / "net.onnx")
