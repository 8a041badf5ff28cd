"""`edm2 generate`: guidance, presets, NPZ files, latents, several processes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Result, complaint, edm2, half_written, succeed, torchrun
from PIL import Image

from edm2.io.model import ASSETS, load, read_metadata, save
from edm2.networks import NetworkConfig, build_network
from edm2.pipeline import EDM2Pipeline
from edm2.post_hoc_ema import find_snapshots, snapshot_name
from edm2.sampling.output import NpyFiles
from edm2.sampling.presets import GENERATION_PRESETS
from edm2.training import LatentCodec
from edm2.training.data import vae as latents_module

FEW = ("--seeds", "0-1", "--steps", 3, "--device", "cpu")
QUICK = ("--steps", 3, "--device", "cpu")


def run(*arguments: object) -> Result:
    return edm2("generate", *arguments, *QUICK)


def draw(tmp_path: Path, *arguments: object) -> np.ndarray:
    """The images of an NPZ file that a command writes."""
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
    result = run(*arguments, "--npz", path)
    assert result.code == 0, result.err
    with np.load(path) as read:
        return read["arr_0"]


def levels_apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference in levels of the digits, which are 16 apart in a file."""
    return np.abs(a.astype(int) - b.astype(int)).max() / 16


def saying(network: Path, out: Path, **entries: Any) -> Path:
    """A copy of a network whose metadata has other entries."""
    save(load(network), out, read_metadata(network) | entries)
    return out


# ------------------------------------------------------------------------------------------------ guidance


def test_a_pipeline_is_drawn_without_its_guide_and_that_is_said(outspoken_network, tmp_path):
    EDM2Pipeline.from_snapshot(outspoken_network, guide=outspoken_network).save_pretrained(tmp_path / "pipeline")
    result = run(tmp_path / "pipeline", "--seeds", 0, "--grid", tmp_path / "grid.png")
    assert result.code == 0
    assert "pipeline: is drawn without the guide in it" in result.err


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [(1, [(4, True)] * 5), (0, [(4, False)] * 5), (2, [(8, True)] * 5)],
    ids=["none", "guide alone", "both in one batch"],
)
def test_the_network_itself_as_a_guide(outspoken_network, tmp_path, evaluations, guidance, expected):
    """2 N - 1 evaluations for N steps, whatever the weight."""
    draw(tmp_path, outspoken_network, "--seeds", "0-3", "--unlabelled-guide", "--guidance", guidance)
    assert evaluations == expected


def test_a_second_network_costs_a_second_evaluation_within_the_interval_only(
    outspoken_network, tiny_run, tmp_path, evaluations
):
    """The middle one of the levels 80, 2.5 and 0.002 begins a step inside."""
    guide = tiny_run / "snapshots" / snapshot_name(128, 0.05)
    draw(tmp_path, outspoken_network, "--seeds", "0-3", "--guide", guide, "--guidance", 2, "--interval", "1,10")
    assert evaluations == [(4, True)] * (2 + 2 * 2 + 1)


def test_the_unlabelled_guide_is_the_network_without_labels(outspoken_network, tmp_path):
    """Weight 0 is the guide alone: classes make no difference to it, and any weight else moves away from it."""
    alone = ("--unlabelled-guide", "--guidance", 0)
    three, seven = (draw(tmp_path, outspoken_network, "--class", c, *alone) for c in (3, 7))
    assert np.array_equal(three, seven)
    away = draw(tmp_path, outspoken_network, "--class", 3, "--unlabelled-guide", "--guidance", 4)
    assert levels_apart(away, draw(tmp_path, outspoken_network, "--class", 3)) >= 1


def test_guides_that_do_not_fit_are_refused_or_warned_of(outspoken_network, tmp_path):
    """A network guides itself if it missed labels; one that does not say so, or a guide of other data, is doubtful."""
    guided = ("--guidance", 2, "--grid", tmp_path / "grid.png")
    enough = ("--steps", 7, "--device", "cpu")  # fewer evaluations are warned of
    training = read_metadata(outspoken_network)["training"]
    never, often, silent, other = (
        saying(outspoken_network, tmp_path / f"{name}.safetensors", **entries)
        for name, entries in {
            "never": {"training": training | {"label_dropout": 0.0}},
            "often": {"training": training | {"label_dropout": 0.1}},
            "silent": {"training": {}},
            "other": {"codec": {"kind": "pixels"}},
        }.items()
    )
    refused = run(never, "--unlabelled-guide", *guided)
    assert refused.code == 1
    assert all(part in complaint(refused.err) for part in ("never.safetensors", "--guide", "--label-dropout 0.1"))
    assert edm2("generate", often, "--unlabelled-guide", *guided, *enough).err == ""
    for options, doubtful in (
        ((silent, "--unlabelled-guide"), "silent.safetensors"),
        ((outspoken_network, "--guide", other), "other.safetensors"),
    ):
        warned = edm2("generate", *options, *guided, *enough)
        assert warned.code == 0
        [line] = warned.err.splitlines()
        assert line.startswith("Warning: ")
        assert doubtful in line


# ------------------------------------------------------------------------------------------------ presets


@pytest.fixture
def networks(outspoken_network, tiny_run, tmp_path) -> Path:
    """A folder with files of the names that the S interval preset wants, tiny though."""
    preset, folder = GENERATION_PRESETS["edm2-img512-s-interval-fid"], tmp_path / "networks"
    folder.mkdir()
    shutil.copy(outspoken_network, folder / f"{preset.network.stem}.safetensors")
    early = tiny_run / "snapshots" / snapshot_name(128, 0.05)
    shutil.copy(early, folder / f"{preset.guide.stem}.safetensors")
    return folder


PRESET = ("--preset", "edm2-img512-s-interval-fid", "--seeds", "0-3")


def test_a_preset_is_its_networks_weight_and_interval(networks, outspoken_network, tmp_path, monkeypatch):
    [guide] = networks.glob("*uncond*")
    by_name = draw(tmp_path, *PRESET, "--networks", networks)
    with monkeypatch.context() as patched:
        patched.chdir(networks)  # where they are looked for by default
        assert np.array_equal(by_name, draw(tmp_path, *PRESET))
    spelt_out = (outspoken_network, "--seeds", "0-3", "--guide", guide, "--guidance", 2.1, "--interval", "0.283,2.9016")
    assert np.array_equal(by_name, draw(tmp_path, *spelt_out))
    assert levels_apart(by_name, draw(tmp_path, outspoken_network, "--seeds", "0-3")) >= 1


def test_what_is_said_goes_before_the_preset(networks, outspoken_network, tiny_run, tmp_path, evaluations):
    options = (*PRESET, "--networks", networks)
    plain = draw(tmp_path, outspoken_network, "--seeds", "0-3")
    assert np.array_equal(draw(tmp_path, *options, "--guidance", 1), plain)
    assert np.array_equal(draw(tmp_path, *options, "--interval", "1000,2000"), plain)
    raw = tiny_run / "raw-weights.safetensors"
    assert levels_apart(draw(tmp_path, raw, *options, "--guidance", 1), plain) >= 1
    assert np.array_equal(draw(tmp_path, *options, "--guide", outspoken_network, "--guidance", 0,
                               "--interval", "0,100"), plain)  # fmt: skip
    evaluations.clear()
    draw(tmp_path, *options, "--unlabelled-guide", "--interval", "0,100")
    assert evaluations == [(8, True)] * 5

    [guide] = networks.glob("*uncond*")
    guide.unlink()
    assert len(draw(tmp_path, *options, "--guidance", 1)) == 4, "what is not needed need not be there"
    result = run(*options, "--npz", tmp_path / "a.npz")
    assert result.code == 1
    assert guide.name in complaint(result.err)
    shown = succeed("generate", "--list-presets")
    assert all(re.search(rf"^{name} ", shown, re.MULTILINE) for name in GENERATION_PRESETS)


# ------------------------------------------------------------------------------------------------ NPZ


def test_an_npz_has_the_images_of_the_folder_and_their_classes(outspoken_network, tmp_path, evaluations):
    """The arrays are those of evaluation suites: uint8 [N, H, W, C] and int64 [N], in the order of the seeds."""
    options = (outspoken_network, "--seeds", "7,2,1003", "--npz")
    result = run(*options, tmp_path / "a.npz", "--out", tmp_path / "out", "--subdirs")
    assert result.code == 0, result.err
    files = [tmp_path / "out" / name for name in ("000000/000007.png", "000000/000002.png", "001000/001003.png")]
    with np.load(tmp_path / "a.npz") as read:
        np.testing.assert_array_equal(read["arr_0"][..., 0], [np.asarray(Image.open(file)) for file in files])
        assert read["arr_0"].dtype == np.uint8
        assert read["arr_1"].dtype == np.int64
        for i, seed in enumerate((7, 2, 1003)):
            again = draw(tmp_path, outspoken_network, "--seeds", seed, "--class", read["arr_1"][i])
            assert levels_apart(again[0], read["arr_0"][i]) <= 1
    assert run(*options, tmp_path / "alone.npz").code == 0
    assert (tmp_path / "alone.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()
    assert not half_written(tmp_path)

    evaluations.clear()
    result = run(*options, tmp_path / "a.npz")
    assert result.code == 1
    assert "a.npz" in complaint(result.err)
    assert evaluations == [], "a finished one is not drawn again"


def test_as_many_images_of_each_class(outspoken_network, tmp_path):
    assert run(outspoken_network, "--seeds", "5-24", "--balanced", "--npz", tmp_path / "a.npz").code == 0
    assert np.load(tmp_path / "a.npz")["arr_1"].tolist() == [seed % 10 for seed in range(5, 25)]


def test_an_interrupted_npz_goes_on(outspoken_network, tmp_path, evaluations, monkeypatch):
    """The first batch of two is not drawn again, and nothing shows in the result."""
    options = (outspoken_network, "--seeds", "0-3", "--batch", 2, "--npz")
    assert run(*options, tmp_path / "whole.npz").code == 0
    write = NpyFiles.write

    def interrupted(self, image, path):
        if path.stem == "000002":
            raise KeyboardInterrupt
        write(self, image, path)

    with monkeypatch.context() as context:
        context.setattr(NpyFiles, "write", interrupted)
        assert run(*options, tmp_path / "parts.npz").code == 130
    assert not (tmp_path / "parts.npz").exists()
    other = run(*options, tmp_path / "parts.npz", "--class", 99)
    assert other.code == 1, "a mistake, which must not cost what is there"
    evaluations.clear()
    assert run(*options, tmp_path / "parts.npz").code == 0
    assert len(evaluations) == 5
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.npz", "whole.npz"]


# ------------------------------------------------------------------------------------------------ latents


@pytest.fixture
def latent_network(tmp_path, vae) -> Path:
    """Draws latents, 4x4x4 of three classes."""
    path = tmp_path / "networks" / "latent.safetensors"
    config = NetworkConfig(4, 4, 3, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    save(build_network(config), path, {"codec": LatentCodec(vae=str(vae)).to_json()})
    return path


@pytest.fixture
def decoded_sizes(monkeypatch) -> list[int]:
    """Number of latents in every batch that the VAE decodes."""
    sizes, load_vae = [], latents_module.load_vae

    def watched(name, device):
        vae = load_vae(name, device)
        return SimpleNamespace(decode=lambda z: sizes.append(len(z)) or vae.decode(z))

    monkeypatch.setattr(latents_module, "load_vae", watched)
    return sizes


def test_latents_are_decoded_by_the_vae_or_elsewhere(latent_network, tmp_path, vae, decoded_sizes):
    options = (latent_network, "--seeds", "0-6", "--batch", 5, "--decode-batch", 2)
    pixels = draw(tmp_path, *options)
    assert pixels.shape == (7, 8, 8, 3)
    assert decoded_sizes == [1, 2, 2, 1, 2]  # first of all a trial
    half = draw(tmp_path, *options, "--vae-precision", "bf16").astype(int)
    assert 0 < np.abs(half - pixels).max() <= 4  # 8 bits: with an untrained VAE's few layers, a level or two of 255
    latents = draw(tmp_path, *options, "--latents")
    assert latents.dtype == np.float32
    assert latents.shape == (7, 4, 4, 4)
    decoded = LatentCodec(vae=str(vae)).decode(torch.from_numpy(latents))
    assert np.abs(decoded.permute(0, 2, 3, 1).numpy() - pixels.astype(int)).max() <= 1  # by another size of batch
    result = run(*options, "--latents", "--out", tmp_path / "out")
    assert result.out == f"7 latents in {tmp_path / 'out'} (5 evaluations each, heun)\n"
    np.testing.assert_array_equal(np.load(tmp_path / "out/000003.npy"), latents[3])


def test_a_vae_that_is_not_there_shows_before_anything_is_drawn(
    latent_network, vae, tmp_path, evaluations, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    saying(latent_network, latent_network, codec=LatentCodec(vae=str(tmp_path / "nowhere")).to_json())
    result = run(latent_network, "--out", tmp_path / "out")
    assert result.code == 1
    message = complaint(result.err)
    assert "nowhere" in message
    assert "--latents" in message
    assert evaluations == []
    assert not (tmp_path / "out").exists()
    assert len(draw(tmp_path, latent_network, "--latents")) == 16
    assert draw(tmp_path, latent_network, "--vae", vae).shape == (16, 8, 8, 3), "another copy of it will do"


# ------------------------------------------------------------------------------------------------ several processes


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_processes_make_the_files_that_one_makes(outspoken_network, tmp_path):
    """Batch by batch, so to the bit, also where one left gaps; nothing hidden is left where --out is missing."""
    options = (outspoken_network, "--seeds", "0-9", "--batch", 3)
    one, two = (("--npz", tmp_path / f"{name}.npz", "--grid", tmp_path / f"{name}.png") for name in ("one", "two"))
    assert run(*options, *one, "--out", tmp_path / "out").code == 0
    torchrun(2, "generate", *options, *two, *QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "one.png", "out", "two.npz", "two.png"]
    whole = contents(tmp_path)
    assert whole["one.npz"] == whole["two.npz"]
    assert whole["one.png"] == whole["two.png"]
    for seed in (0, 5, 9):
        (tmp_path / f"out/{seed:06}.png").unlink()
    said = torchrun(2, "generate", *options, *QUICK, "--out", tmp_path / "out")
    assert said.count("10 images in") == 1, "one process speaks"
    assert contents(tmp_path) == whole


# ------------------------------------------------------------------------------------------------ compiled


@pytest.mark.slow
def test_compiled_networks_draw_the_same(tmp_path, outspoken_network, tiny_run, monkeypatch):
    """The network and its guide, each once per size of batch; torch's compiler stops before the machine's own."""
    compile_, asked = torch.nn.Module.compile, []

    def quickly(self, **options):
        asked.append(options)
        compile_(self, **options, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", quickly)
    guide = tiny_run / "snapshots" / snapshot_name(128, 0.05)
    guidance = "--guide", guide, "--guidance", 2, "--seeds", "0-4", "--batch", 3
    expected = draw(tmp_path, outspoken_network, *guidance)
    assert asked == []
    actual = draw(tmp_path, outspoken_network, *guidance, "--compile")
    assert asked == [{"dynamic": False}] * 2
    assert levels_apart(actual, expected) <= 1


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told_what_to_leave_out(tmp_path):
    """Torch's own message is for its authors."""
    environment = os.environ | {
        "CXX": str(tmp_path / "no-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    out = tmp_path / "grid.png"
    command = [sys.executable, "-m", "edm2", "generate", "digits8", "--compile", *map(str, QUICK), "--grid", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    assert "leave out --compile" in complaint(done.stderr)
    assert "no-compiler" in done.stderr
    assert not out.exists()


def test_networks_without_classes(outspoken_network, tmp_path):
    """They cannot be balanced, nor left without labels; and their NPZ has no labels."""
    config = load(outspoken_network).config.to_json() | {"label_dim": 0}
    path = tmp_path / "networks" / "unconditional.safetensors"
    save(build_network(NetworkConfig.from_json(config)), path, {})
    for mistaken in (("--balanced",), ("--unlabelled-guide", "--guidance", 2), ("--class", 1)):
        result = run(path, *mistaken, "--npz", tmp_path / "a.npz")
        assert result.code == 1
        assert "classes" in complaint(result.err)
    assert run(path, "--npz", tmp_path / "a.npz").code == 0
    assert list(np.load(tmp_path / "a.npz")) == ["arr_0"]


# ------------------------------------------------------------------------------------------------ networks of runs


def test_a_run_is_drawn_from_at_the_best_length_that_is_known(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("sweep.*", "reconstructed")))
    said = succeed("generate", run, *FEW, "--out", tmp_path / "a")
    assert "EMA length 0.1 (not swept yet)" in said
    (run / "sweep.csv").write_text(
        "images_seen,sigma_rel,guidance,guide_sigma_rel,frechet_distance,deviation,accuracy,distances,metric,samples\n"
        "512,0.07,1,,3,,,3,FD,8\n512,0.2,1,,5,,,5,FD,8\n512,0.15,2,0.1,1,,,1,FD,8\n"
    )
    said = succeed("generate", run, *FEW, "--out", tmp_path / "b")
    assert "EMA length 0.07 (best in" in said
    said = succeed("generate", run, *FEW, "--ema", "0.12", "--out", tmp_path / "c")
    assert "EMA length 0.12 (as asked for)" in said


def test_a_run_that_was_killed_before_its_first_snapshot_is_drawn_from(tiny_run, tmp_path):
    """From the averages in its last checkpoint, which are those of the snapshots."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    [*_, last] = find_snapshots(tiny_run)
    shutil.rmtree(run / "snapshots")
    (run / "snapshots").mkdir()
    succeed("generate", run, *FEW, "--ema", last.sigma_rel, "--out", tmp_path / "killed")
    succeed("generate", last.path, *FEW, "--out", tmp_path / "whole")
    for image in sorted((tmp_path / "whole").glob("*.png")):
        assert image.read_bytes() == (tmp_path / "killed" / image.name).read_bytes()


def test_images_belong_to_a_network_whatever_it_is_called(tmp_path):
    other = tmp_path / "copy.safetensors"
    shutil.copy(ASSETS / "digits8.safetensors", other)
    succeed("generate", "digits8", *FEW, "--out", tmp_path / "drawn")
    succeed("generate", other, *FEW, "--out", tmp_path / "drawn")
    net = load(other)
    net.unet.out_gain.mul_(0.5)
    save(net, other, read_metadata(other))
    refused = edm2("generate", other, *FEW, "--out", tmp_path / "drawn")
    assert "made with other settings (network in" in complaint(refused.err)
