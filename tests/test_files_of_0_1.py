"""Files of edm2 0.1 stay readable, and its runs go on as if nothing had changed (written_by_0_1/README.md)."""

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_vae import save_tiny_vae
from torch.testing import assert_close

import edm2
from edm2.metrics import load_detector, read_reference, reference_of
from edm2.metrics.reference import read_features
from edm2.pipeline import EDM2Pipeline
from edm2.tools.cli import cli
from edm2.training import open_dataset

FILES = Path(__file__).parent / "written_by_0_1"
COMMANDS: dict[str, str] = json.loads((FILES / "commands.json").read_text())
OUTPUTS = load_file(FILES / "outputs.safetensors")
NETWORKS = [name.removesuffix(":D") for name in OUTPUTS if name.endswith(":D")]
RUNS = [name.removeprefix("train ") for name in COMMANDS if name.startswith("train ")]

ROUNDING = {torch.float32: {"rtol": 0, "atol": 1e-4}, torch.float16: {"rtol": 2**-10, "atol": 1e-4}}
"""Weights after some more steps of Adam. Other convolution kernels, vector instructions, numbers of threads, and noise
of one bit at the resume moved them by 2.3e-5 at most; a forgotten EMA, Adam moment or Pareto weight by 1e-3 at least.
float16 may round to the neighbour."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with all files unpacked, to read from."""
    folder = shutil.copytree(FILES, tmp_path_factory.mktemp("unpacked") / "files")
    shutil.unpack_archive(folder / "folders.tar.xz", folder)
    save_tiny_vae(folder / "tiny-vae")  # what latents.zip was encoded by: a run draws samples at its end
    return folder


@pytest.fixture
def here(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the current folder, a copy of all files for commands that write."""
    monkeypatch.chdir(shutil.copytree(unpacked, tmp_path / "files"))
    return Path()


def run(name: str, *more: str) -> str:
    """Run a command of commands.json; return its output."""
    result = CliRunner().invoke(cli, [*shlex.split(COMMANDS[name]), *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def resume(name: str) -> Path:
    """Run a stopped run to its end; return its folder."""
    run(f"train {name}", "--out", f"stopped/{name}")
    return Path("stopped", name)


def contents(folder: Path) -> dict[Path, str]:
    """Digest of each file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def snapshot_times(run: Path) -> set[str]:
    """Images seen at the snapshots of a run."""
    return {path.name.split("-")[1] for path in (run / "snapshots").iterdir()}


def losses(run: Path) -> list[tuple[int, float]]:
    """Pairs of images seen and the loss reported then."""
    records = map(json.loads, (run / "stats.jsonl").read_text().splitlines())
    return [(record["images_seen"], record["loss"]) for record in records]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_they_did(unpacked, name):
    net = edm2.load(unpacked / name)
    x = OUTPUTS["x".join(map(str, OUTPUTS[f"{name}:D"].shape))]
    labels = torch.eye(net.config.label_dim)[OUTPUTS["labels"]] if net.config.label_dim else None
    denoised, u = net(x, OUTPUTS["sigma"], labels, return_logvar=True)
    assert_close(denoised, OUTPUTS[f"{name}:D"], rtol=1e-5, atol=1e-5)
    assert_close(u, OUTPUTS[f"{name}:u"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_ends_as_if_never_stopped(here, name):
    resumed, expected = resume(name), Path("finished", name)
    files = [path.relative_to(expected) for path in expected.rglob("*.safetensors")]
    assert len(files) >= 3
    assert snapshot_times(resumed) == snapshot_times(expected)
    for file in files:
        ours, theirs = load_file(resumed / file), load_file(expected / file)
        assert ours.keys() == theirs.keys(), file
        for key, tensor in theirs.items():
            assert_close(ours[key], tensor, **ROUNDING[tensor.dtype], msg=lambda text, at=(file, key): f"{at}: {text}")
    for ours, theirs in zip(losses(resumed), losses(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)  # the first after the resume counts steps of before


def test_reconstructions_are_the_same(here):
    stored = {path: load_file(path) for path in Path("reconstructed").iterdir()}
    for path in stored:
        path.unlink()
    run("reconstruct", "--method", "density")
    for path, tensors in stored.items():
        assert_close(load_file(path), tensors, rtol=1e-5, atol=1e-5)


def test_snapshots_of_both_versions_are_those_of_one_run(here):
    shutil.rmtree("finished/g")
    resume("g").rename("finished/g")
    stored = {path: load_file(path) for path in Path("reconstructed").iterdir()}
    run("reconstruct", "--method", "density")
    for path, tensors in stored.items():
        assert_close(load_file(path), tensors, rtol=0, atol=4e-4)  # coefficients are up to 4 times the averages' error


def test_diagnostics_are_drawn(here):
    run("plot")
    assert list(Path("stopped/latents/plots").glob("*.png"))


def test_the_pipeline_draws_the_same(unpacked):
    pipe = EDM2Pipeline.from_pretrained(unpacked / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(class_labels=[0, 1, 2], seeds=[1, 2, 3], num_inference_steps=4, output_type="latent").images
    assert_close(drawn, OUTPUTS["pipeline:samples"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pixels.zip", "latents.zip"])
def test_datasets_are_what_they_were(name):
    dataset, facts = open_dataset(FILES / name), json.loads((FILES / "datasets.json").read_text())[name]
    every = range(len(dataset))
    found = {key: getattr(dataset, key) for key in ("kind", "class_names", "pixel_stats", "latents")}
    found |= {"labels": dataset.labels(every).tolist(), "fingerprint": dataset.fingerprint()}
    assert json.loads(json.dumps(found)) == facts
    assert torch.equal(dataset.images(every), load_file(FILES / "datasets.safetensors")[name])


def test_reference_statistics_are_read_and_would_be_the_same():
    arrays = np.load(FILES / "reference.npz")
    found = read_reference(FILES / "reference.npz")["pixels"]
    assert np.array_equal(found.mu, arrays["pixels/mu"])
    assert np.array_equal(found.sigma, arrays["pixels/sigma"])
    assert found.num_images == 72
    assert np.array_equal(read_features(FILES / "reference.npz", "pixels"), arrays["pixels/features"])
    again = reference_of(open_dataset(FILES / "pixels.zip"), load_detector("pixels"))
    np.testing.assert_allclose(again.sigma, found.sigma, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sweep", "sweep ref"])
def test_only_combined_averages_of_a_sweep_are_scored_again(here, name):
    """They have other coefficients now (tails); stored averages and raw weights are what they were.

    A sweep without --ref finds statistics of real images beside its scores, or computes the same again.
    """
    cache = here / "sweep/sweep.jsonl"
    known = cache.read_text().splitlines()
    run(name)
    scores = cache.read_text().splitlines()
    assert scores[: len(known)] == known
    again = [json.loads(score) for score in scores[len(known) :]]
    assert [score["sigma_rel"] for score in again] == [0.12] * (2 if name == "sweep" else 1)
    assert all(score["distance"] == pytest.approx(23.12, rel=0.01) for score in again)
    run(name)
    assert cache.read_text().splitlines() == scores


def test_a_study_is_finished(here):
    before = contents(here / "study/runs")
    table = (here / "study/ablation.csv").read_text()
    assert run("study").count(" known ") == 2
    assert contents(here / "study/runs") == before
    assert (here / "study/ablation.csv").read_text() == table
