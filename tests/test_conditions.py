"""Conditions travel by name from the dataset to the network, in training and in sampling."""

import dataclasses
import importlib
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import complaint, edm2 as edm2_command, succeed
from dataset_files import encoded, npy, write_zip
from jobs import Job
from PIL import Image
from tiny_run import assert_same_bits, assert_same_numbers, final_state, stats, tiny_config, tiny_data
from tiny_text import save_tiny_text_encoder
from torch import Tensor, nn

import edm2
from edm2.datasets.embedding import embed
from edm2.io.text_encoder import TextEncoderError, load_text_encoder
from edm2.networks import (
    ImageCondition,
    NetworkConfig,
    Precond,
    ScalarCondition,
    TokenCondition,
    VectorCondition,
    build_network,
)
from edm2.networks.conditions import noise_level
from edm2.sampling.conditions import held_out_conditions, rows_of_conditions
from edm2.sampling.guidance import guided, without_conditions, without_labels
from edm2.sampling.samplers import SAMPLERS
from edm2.training import ArrayDataset, DatasetError, EDM2Loss, Trainer, TrainingConfig, open_dataset, read_run_config
from edm2.training.data.batches import Batch
from edm2.training.data.conditions import describe_condition
from edm2.training.diagnostics.batches import by_bin, over_all_levels
from edm2.training.diagnostics.holdout import measure_loss
from edm2.training.diagnostics.magnitudes import measure_activations
from edm2.training.diagnostics.noise_levels import measure_noise_levels
from edm2.training.distributed.processes import joined_processes
from edm2.training.loss.noise import LnNormal
from edm2.training.loss.weighting import EDM


class Shifted(nn.Module):
    """A denoiser that is told the brightness of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, 0.1]))

    def forward(self, x: Tensor, sigma: Tensor, labels=None, conditions=None) -> Tensor:
        bright = conditions["brightness"].to(x.dtype).reshape(-1, 1, 1, 1)
        return self.weight[0] * x + self.weight[1] * bright


def brightness_data() -> ArrayDataset:
    """Images with their mean, in [-1, 1], beside them."""
    images = torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    brightness = images.double().mean(dim=(1, 2, 3)) / 127.5 - 1
    return ArrayDataset(images, torch.arange(40) % 3, conditions={"brightness": brightness})


class Recorder(EDM2Loss):
    """The loss, with a look at whether images and conditions belong together."""

    def __call__(self, net, images, labels=None, *, conditions=None, **options) -> Tensor:
        mean = images.double().mean(dim=(1, 2, 3))
        correlation = torch.corrcoef(torch.stack([mean, conditions["brightness"]]))[0, 1]
        assert correlation > 1 - 1e-6
        return super().__call__(net, images, labels, conditions=conditions, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_hands_each_image_its_conditions_and_resumes_to_the_bit(tmp_path, workers):
    def trainer(name: str) -> Trainer:
        settings = {"weighting": "edm", "workers": workers, "micro_batch": 4, "holdout": 8}
        config = dataclasses.replace(tiny_config(tmp_path / name, **settings), network=None)
        return Trainer(config, net=Shifted(), loss=Recorder(weighting=EDM()), dataset=brightness_data())

    whole, stopped = trainer("whole"), trainer("stopped")
    whole.run()
    stopped.stop_requested = 1
    stopped.run()
    resumed = trainer("stopped")
    resumed.run()
    assert_same_bits(final_state(resumed), final_state(whole))


def condition_denoiser(x: Tensor, sigma: Tensor, labels=None, conditions=None) -> Tensor:
    shift = 0 if not conditions else sum(values.reshape(-1, 1, 1, 1) for values in conditions.values())
    return 0.1 * x + shift + (0 if labels is None else 10 * (labels >= 0).reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_pass_conditions_to_the_denoiser(name):
    noise, conditions = torch.randn(3, 1, 2, 2), {"a": torch.tensor([0.0, 1.0, 2.0])}
    drawn = SAMPLERS[name].sample(condition_denoiser, noise, conditions=conditions, num_steps=3)
    for i, value in enumerate(conditions["a"]):
        alone = SAMPLERS[name].sample(condition_denoiser, noise[i : i + 1], conditions={"a": value[None]}, num_steps=3)
        torch.testing.assert_close(drawn[i : i + 1], alone)


@torch.no_grad()
def test_guidance_drops_conditions_by_name():
    x, sigma, labels = torch.randn(2, 1, 2, 2), torch.tensor(1.0), torch.tensor([0, 1])
    conditions = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([30.0, 40.0])}
    full = condition_denoiser(x, sigma, labels, conditions)
    without_a = condition_denoiser(x, sigma, labels, {"b": conditions["b"]})
    without_class = condition_denoiser(x, sigma, None, conditions)
    for guide, expected in (
        (without_conditions(condition_denoiser, ["a"]), without_a),
        (without_labels(condition_denoiser), without_class),  # one batch of twice the size
    ):
        actual = guided(condition_denoiser, guide, 1.7)(x, sigma, labels, conditions)
        torch.testing.assert_close(actual, expected.lerp(full, 1.7))
    with pytest.raises(ValueError, match="conditions c cannot be dropped"):
        without_conditions(condition_denoiser, ["c"])(x, sigma, labels, conditions)


def test_measurements_of_a_run_hand_conditions_on():
    net = small_conditioned()
    images, labels, shift = torch.randn(6, 1, 8, 8), None, torch.linspace(-1, 1, 6)
    lacking, with_shift = Batch(images, labels), Batch(images, labels, {"shift": shift})
    shown = measure_noise_levels(net, EDM2Loss(), by_bin(with_shift, LnNormal(), 2), 4)["noise_levels"]["loss"]
    assert shown != measure_noise_levels(net, EDM2Loss(), by_bin(lacking, LnNormal(), 2), 4)["noise_levels"]["loss"]
    calls = []
    net.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs["conditions"]["shift"]), with_kwargs=True)
    measure_activations(net, over_all_levels(with_shift, LnNormal()).split(4))
    measure_loss(net, with_shift, LnNormal(), 4)
    assert torch.equal(torch.cat(calls), shift.repeat(len(calls) // 2))


class Conditioned(Precond):
    """A network whose images become brighter by what is asked for."""

    def forward(self, x, sigma, class_labels=None, return_logvar=False, *, conditions=None):
        given = dict(conditions or {})
        shift = given.pop("shift", torch.zeros(len(x))).reshape(-1, 1, 1, 1)
        D_x = super().forward(x, sigma, class_labels, return_logvar, conditions=given)
        return (D_x[0] + shift, D_x[1]) if return_logvar else D_x + shift


def small_conditioned() -> Precond:
    net = build_network(NetworkConfig(8, 1, 0, model_channels=8, channel_mult=(1,), attn_resolutions=()))
    net.__class__ = Conditioned
    return net


def test_generated_images_get_the_rows_of_their_seeds():
    net = small_conditioned()
    shift = torch.linspace(-1, 1, 5)
    options = {"num_steps": 3, "batch_size": 2}
    together = torch.cat([b.samples for b in edm2.generate(net, range(5), conditions={"shift": shift}, **options)])
    for seed in range(5):
        (alone,) = edm2.generate(net, [seed], conditions={"shift": shift[seed : seed + 1]}, **options)
        torch.testing.assert_close(together[seed : seed + 1], alone.samples, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="condition shift: 5 rows for 4 seeds"):
        edm2.generate(net, range(4), conditions={"shift": shift})
    with pytest.raises(ValueError, match="unknown conditions caption"):
        net(torch.zeros(1, 1, 8, 8), 1.0, conditions={"caption": torch.zeros(1)})


# ------------------------------------------------------------------------------------------------ a kind of our own

MODULE = """
import dataclasses
import importlib
import torch
from edm2.networks import NetworkConfig, Precond, build_network
from edm2.training import ArrayDataset

class BrightData(ArrayDataset):  # 1: the dataset
    def __init__(self):
        images = torch.randint(256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        images = (images // 4 + torch.arange(64).reshape(-1, 1, 1, 1) * 3).to(torch.uint8)
        super().__init__(images, conditions={"brightness": images.double().mean(dim=(1, 2, 3)).float() / 127.5 - 1})

@dataclasses.dataclass(frozen=True)
class BrightConfig(NetworkConfig):  # 2: the network's config
    brightness_scale: float = 1.0

class BrightPrecond(Precond):  # 3: the preconditioner
    def forward(self, x, sigma, class_labels=None, return_logvar=False, *, conditions=None):
        others = dict(conditions or {})
        brightness = others.pop("brightness").reshape(-1, 1, 1, 1) * self.config.brightness_scale
        return super().forward(x - brightness, sigma, class_labels, return_logvar, conditions=others) + brightness

def make():
    config = BrightConfig(8, 1, 0, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    net = build_network(config)
    net.__class__ = BrightPrecond
    return net
"""


def test_a_new_kind_of_condition_needs_a_dataset_a_config_and_a_preconditioner(tmp_path, monkeypatch):
    """And nothing else of the project changes: it is trained and, from the command line, asked for."""
    (tmp_path / "bright.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    bright = importlib.import_module("bright")
    settings = {"weighting": "edm", "ref_lr": 1e-3, "duration": 96, "snapshot_every": 48, "workers": 0, "batch_size": 8}
    config = TrainingConfig(data="bright", out="run", network=None, **settings)
    Trainer(config, net=bright.make(), dataset=bright.BrightData()).run()
    asked = ("generate", "run", "--net-from", "bright:make", "--seeds", "0-3", "--steps", 4, "--device", "cpu")
    np.save("rows.npy", np.linspace(-0.5, 0.5, 4, dtype=np.float32))
    means = {}
    for value in (-0.5, 0.5, "rows.npy"):
        succeed(*asked, "--condition", f"brightness={value}", "--npz", f"{value}.npz")
        means[value] = np.load(f"{value}.npz")["arr_0"].reshape(4, -1).mean(axis=1)
    assert (means[0.5] - means[-0.5] > 30).all()
    assert means["rows.npy"][0] == means[-0.5][0]
    assert means["rows.npy"][3] == means[0.5][3]
    for wrong, named in (
        ("brightness", "write NAME=NUMBER"),
        ("brightness=dark", "neither a number nor an NPY file"),
        ("caption=1", "unknown conditions caption"),
    ):
        refused = edm2_command(*asked, "--condition", "brightness=0", "--condition", wrong, "--npz", "x.npz")
        assert named in complaint(refused.err)


# -------------------------------------------------------------------------------------- kinds of `networks/conditions`

WORDS = ["one", "two", "bold", "thin"]
KINDS = ("edges", "colour", "age", "caption")


def write_data(path: Path) -> Path:
    """Forty images with conditions of every kind in a ZIP."""
    random, files = np.random.default_rng(0), {}
    for i in range(40):
        pixels = (random.integers(0, 64, (8, 8, 3)) + random.integers(0, 192, 3)).astype(np.uint8)
        stem = f"class{i % 2}/img{i:02}"
        files |= {
            f"{stem}.png": encoded(Image.fromarray(pixels)),
            f"conditions/edges/{stem}.png": encoded(Image.fromarray(pixels[::2, ::2, 0])),
            f"conditions/colour/{stem}.npy": npy(pixels.mean(axis=(0, 1))),
            f"conditions/age/{stem}.npy": npy(np.float64(i)),
            f"conditions/caption/{stem}.npy": npy(random.normal(size=(1 + i % 3, 5))),
        }
    return write_zip(path, files)


@pytest.fixture(scope="module")
def conditioned_run(tmp_path_factory) -> Path:
    """Folder of the data, and of a run with conditions of every kind."""
    folder = tmp_path_factory.mktemp("conditioned")
    write_data(folder / "data.zip")
    kinds = [word for name in KINDS for word in ("--condition", name)]
    drops = [word for name in KINDS[1:] for word in ("--condition-dropout", f"{name}=0.2")]
    small = (
        "--preset",
        "edm2-tiny",
        "--batch",
        32,
        "--channels",
        16,
        "--holdout",
        8,
        "--device",
        "cpu",
        "--workers",
        0,
    )
    length = ("--duration", 64, "--snapshot", 32, "--status", 32, "--sample", 64, "--checkpoint", 32)
    with_noise = ("--condition-noise", "edges=0.3", "--xflip")
    succeed(
        "train", "--data", folder / "data.zip", "--out", folder / "run", *kinds, *drops, *with_noise, *small, *length
    )
    return folder


def test_a_run_with_conditions_of_every_kind(conditioned_run):
    records = [json.loads(line) for line in (conditioned_run / "run/stats.jsonl").read_text().splitlines()]
    assert records[-1]["holdout_loss_shuffled"] > 0
    assert len(records[-1]["holdout_losses_shuffled"]) == len(records[-1]["holdout_losses"])
    config = edm2.read_metadata(sorted((conditioned_run / "run/snapshots").iterdir())[-1])["network"]
    described = {condition["name"]: condition for condition in config["conditions"]}
    assert [(name, c["kind"]) for name, c in described.items()] == [
        ("edges", "image"), ("colour", "vector"), ("age", "scalar"), ("caption", "tokens"), ("edges_noise", "scalar"),
    ]  # fmt: skip
    assert (config["label_source"], described["age"]["mean"], described["caption"]["length"]) == (True, [19.5], 3)
    grid = Image.open(sorted((conditioned_run / "run/samples").iterdir())[-1])
    rows, columns = (side // (64 + 8) + 1 for side in (grid.height, grid.width))
    assert (rows, columns) == (1 + 1 + 3, 8)  # images, edges, three samples each; of all that are held out


def test_the_grid_shows_held_out_conditions_above_their_samples(conditioned_run):
    grid = np.array(Image.open(sorted((conditioned_run / "run/samples").iterdir())[-1]))
    image, edges = grid[:64:8, :64:8], grid[72 : 72 + 64 : 16, :64:16]
    assert np.array_equal(image[::2, ::2, 0], edges[:, :, 0])


def test_images_are_asked_for_by_every_kind(conditioned_run, monkeypatch):
    monkeypatch.chdir(conditioned_run)
    Path("edges").mkdir()
    for i, shade in enumerate((0, 100, 200)):
        Image.new("L", (4, 4), shade).save(f"edges/{i}.png")
    np.save("caption.npy", np.zeros((2, 5), dtype=np.float32))
    asked = ("generate", "run", "--ema", 0.1, "--seeds", "0-2", "--steps", 2, "--device", "cpu")
    every = [
        word
        for text in ("edges=edges", "colour=10,20,30", "age=7", "caption=caption.npy")
        for word in ("--condition", text)
    ]
    succeed(*asked, *every, "--unguided", "caption", "--unguided", "age", "--guidance", 2, "--npz", "all.npz")
    succeed(*asked, "--condition", "edges=edges/1.png", "--npz", "one.npz")
    assert np.load("all.npz")["arr_0"].shape == (3, 8, 8, 3)
    for wrong, named in (
        (("--condition", "colour=1,2"), "values are [3, 2], but must be [3, 3]"),
        (("--condition", "depth=1"), "unknown conditions depth: this network takes edges (an image of 1 channel)"),
        (("--condition", "caption=a red heart"), "made without a text encoder"),
        (("--condition", "edges=edges", "--seeds", "0-4"), "edges: 3 rows for 5 seeds"),
        (("--unguided", "edges", "--guidance", "2"), "trained with condition edges for every image"),
        ((), "condition edges is needed: the network was trained with it for every image; give an image of 1 channel"),
    ):
        needed = () if not wrong or "edges=edges" in wrong else ("--condition", "edges=edges")
        assert named in complaint(edm2_command(*asked, *needed, *wrong, "--npz", "x.npz").err)


def test_pipelines_take_and_save_conditions(conditioned_run, tmp_path):
    snapshot = sorted((conditioned_run / "run/snapshots").iterdir())[-1]
    pipe = edm2.EDM2Pipeline.from_snapshot(snapshot)
    pipe.save_pretrained(tmp_path / "pipe")
    again = edm2.EDM2Pipeline.from_pretrained(tmp_path / "pipe")
    given = {"edges": Image.new("L", (4, 4), 100), "age": 3.0}
    options = {"class_labels": 1, "num_inference_steps": 2, "seeds": range(3), "output_type": "latent"}
    images = again(conditions=given, unguided=["age"], guidance_scale=2, **options).images
    net = edm2.load(snapshot)
    guide = edm2.without_conditions(net, ["age"])
    (batch,) = edm2.generate(net, range(3), 1, guide, 2, conditions=given, num_steps=2)
    torch.testing.assert_close(images, batch.samples, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_scores_are_of_samples_for_held_out_conditions_or_given_ones(conditioned_run, tmp_path, monkeypatch):
    """In `edm2 sweep` and `edm2 metrics gen`, with the classes that go with them."""
    monkeypatch.chdir(conditioned_run)
    config, dataset = read_run_config("run"), open_dataset("data.zip")
    held_out = held_out_conditions(config, dataset)
    assert list(held_out.rows) == list(KINDS)
    ages_there = held_out.rows["age"].tolist()  # of image i, of class i modulo 2
    assert (len(ages_there), list(held_out.classes)) == (8, [age % 2 for age in ages_there])
    drawn = []
    monkeypatch.setattr(Precond, "forward", watching(Precond.forward, drawn))
    fast = ("--steps", 1, "--device", "cpu")
    sweep = ("sweep", "run", "--std", 0.1, "--samples", 10, *fast, "--out", tmp_path)
    shown = succeed(*sweep)
    assert "Samples get 8 values of edges, colour, age, caption in turn" in shown
    assert "--condition edges=... --condition colour=..." in shown
    ages, classes = drawn[0]
    assert ages.tolist() == [*ages_there, *ages_there[:2]]
    assert classes == [*held_out.classes, *held_out.classes[:2]]
    scores = len((tmp_path / "sweep.jsonl").read_text().splitlines())
    monkeypatch.setattr("edm2.sweep.sweep.score_network", None)
    succeed(*sweep)  # known
    monkeypatch.undo()
    monkeypatch.chdir(conditioned_run)
    monkeypatch.setattr(Precond, "forward", watching(Precond.forward, drawn))
    drawn.clear()
    Image.new("L", (4, 4), 100).save(tmp_path / "edges.png")
    given = ("--condition", f"edges={tmp_path / 'edges.png'}", "--condition", "age=7")
    succeed(*sweep, *given)
    assert len((tmp_path / "sweep.jsonl").read_text().splitlines()) == scores + 2  # average and raw weights
    assert drawn[0][0].tolist() == [7] * 10
    drawn.clear()
    succeed("metrics", "ref", "data.zip", tmp_path / "ref.npz", "--detector", "pixels")
    gen = ("metrics", "gen", "run", "--ema", 0.1, "--ref", tmp_path / "ref.npz", "--seeds", "0-9", *fast)
    succeed(*gen)
    assert drawn[0][0].tolist() == [*ages_there, *ages_there[:2]]
    assert drawn[0][1] == [*held_out.classes, *held_out.classes[:2]]
    assert "unknown conditions depth" in complaint(edm2_command(*sweep, "--steps", 12, "--condition", "depth=1").err)


@pytest.mark.slow
def test_scores_during_training_are_those_of_a_sweep(conditioned_run, tmp_path, monkeypatch):
    """Of a condition that the network needs for every image."""
    small = (
        "--preset",
        "edm2-tiny",
        "--batch",
        32,
        "--channels",
        16,
        "--holdout",
        8,
        "--device",
        "cpu",
        "--workers",
        0,
    )
    length = ("--duration", 64, "--snapshot", 32, "--status", 32, "--sample", 64, "--checkpoint", 32)
    scored = ("--condition", "age", "--eval", 0.1, "--eval-samples", 8)
    succeed("train", "--data", conditioned_run / "data.zip", "--out", tmp_path / "run", *small, *length, *scored)
    lines = [json.loads(line) for line in (tmp_path / "run/sweep.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in lines] == [32, 64]
    monkeypatch.setattr("edm2.sweep.sweep.score_network", None)  # all are known
    succeed("sweep", tmp_path / "run", "--std", 0.1, "--at", 32, "--samples", 8, "--device", "cpu")


@pytest.mark.slow
def test_a_study_trains_and_measures_with_all_conditions(tmp_path):
    """All that `edm2 train` is told of conditions reaches the runs, and their losses are measured with them."""
    write_data(tmp_path / "data.zip")
    kinds = ("--condition", "age", "--condition-dropout", "age=0.5", "--make-condition", "lowres=downsample:2")
    small = ("--preset", "digits8", "--channels", 8, "--batch", 8, "--device", "cpu", "--holdout", 8, "--duration", 64)
    scored = ("--std", 0.1, "--samples", 8, "--steps", 1, "--detector", "pixels", "--vary", "lr=0.01")
    where = ("--data", tmp_path / "data.zip", "--out", tmp_path / "study")
    succeed("ablate", *where, *scored, "--", *small, *kinds, "--condition-noise", "lowres=0.5")
    known = {c.name: c for c in read_run_config(tmp_path / "study/runs/lr=0.01-seed0").own_network.conditions}
    assert (list(known), known["age"].dropout, known["lowres"].noise) == (["age", "lowres", "lowres_noise"], 0.5, 0.5)
    assert "lr=0.01" in (tmp_path / "study/ablation.csv").read_text()


@pytest.mark.slow
def test_a_page_draws_for_held_out_conditions_and_says_why_not_without_the_images(conditioned_run, tmp_path):
    run, out = shutil.copytree(conditioned_run / "run", tmp_path / "run"), tmp_path / "page.html"
    report = ("report", run, "--std", 0.1, "--images", 2, "--steps", 1, "--no-neighbours", "--out", out)
    succeed(*report)
    html = out.read_text()
    assert "edges (an image of 1 channel), colour (a vector of 3 numbers)" in html
    assert "--condition age=..." in html
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data": "gone.zip"}))
    refused = edm2_command(*report)
    assert "No EMA slider: samples take the conditions of its images, which are not there" in refused.err
    assert "--condition" not in refused.err  # which the command does not have


@pytest.mark.slow
def test_a_cascade_tells_the_second_network_how_noisy_the_first_ones_images_are(conditioned_run, tmp_path):
    """Level 0 unless given, said on screen; nothing is added to the images."""
    succeed("generate", "digits8", "--seeds", "0-3", "--steps", 2, "--out", tmp_path / "small")
    asked = ("generate", conditioned_run / "run", "--ema", 0.1, "--seeds", "0-3", "--steps", 2, "--latents")
    edges, drawn = ("--condition", f"edges={tmp_path / 'small'}"), {}
    for level, said in (("", "edges_noise: 0, as none is given"), (0, "edges_noise: 0\n"), (0.2, "edges_noise: 0.2\n")):
        given = () if level == "" else ("--condition", f"edges_noise={level}")
        shown = succeed(*asked, *edges, *given, "--class", 1, "--npz", tmp_path / f"{level}.npz")
        assert said in shown
        drawn[level] = np.load(tmp_path / f"{level}.npz")["arr_0"]
    assert np.array_equal(drawn[""], drawn[0])
    assert not np.array_equal(drawn[0.2], drawn[0])
    net = edm2.load(sorted((conditioned_run / "run/snapshots").iterdir())[-1])  # of length 0.10
    pictures = [Image.open(path) for path in sorted((tmp_path / "small").glob("*.png"))]
    given = {"edges": pictures, "edges_noise": 0.2}
    (batch,) = edm2.generate(net, range(4), 1, conditions=given, num_steps=2)
    assert drawn[0.2] == pytest.approx(batch.samples.numpy(), rel=1e-3, abs=1e-4)


def watching(forward, seen: list):
    """The method, which also notes ages and classes of its calls."""

    def watched(net, x, sigma, class_labels=None, return_logvar=False, *, conditions=None, **options):
        classes = None if class_labels is None else class_labels.tolist()
        seen.append((None if conditions is None else conditions.get("age"), classes))
        return forward(net, x, sigma, class_labels, return_logvar, conditions=conditions, **options)

    return watched


@pytest.mark.slow
def test_a_run_with_conditions_resumes_to_the_bit(conditioned_run, tmp_path):
    config = read_run_config(conditioned_run / "run")

    def trainer(name: str, duration: int) -> Trainer:
        changed = {"out": str(tmp_path / name), "duration": duration, "sample_every": None, "status_every": 32}
        return Trainer(dataclasses.replace(config, **changed))

    whole = trainer("whole", 64)
    whole.run()
    trainer("stopped", 32).run()
    resumed = trainer("stopped", 64)
    resumed.run()
    assert_same_bits(final_state(resumed), final_state(whole))


def train_with_every_kind(out: Path, shard: bool, final: Path) -> None:
    """Ten steps with conditions of every kind, dropped and with noise; the first process leaves the end."""
    g, images = torch.Generator().manual_seed(0), tiny_data()
    captions = torch.randn(40, 3, 5, generator=g)
    captions[::3, 1:] = torch.nan
    given = {
        "colour": torch.randn(40, 3, generator=g),
        "age": torch.randn(40, generator=g),
        "edges": torch.randn(40, 1, 4, 4, generator=g),
        "caption": captions,
    }
    edges = ImageCondition("edges", 1, noise=0.3)
    kinds = (
        VectorCondition("colour", 3, dropout=0.2), ScalarCondition("age"), edges, noise_level(edges),
        TokenCondition("caption", 5, length=3, dropout=0.2),
    )  # fmt: skip
    config = tiny_config(out, duration=80, status_every=8, snapshot_every=40, holdout=8, shard=shard)
    network = dataclasses.replace(config.network, conditions=kinds, label_source=True)
    dataset = ArrayDataset(images.images(range(40)), images.labels(range(40)), conditions=given)
    with joined_processes() as processes:
        trainer = Trainer(dataclasses.replace(config, network=network), dataset=dataset, processes=processes)
        trainer.run()
        whole = dict(trainer.step.strategy.gathered(final_state(trainer)))
        if processes.is_first:
            torch.save(whole, final)


@pytest.mark.slow
def test_several_processes_train_with_conditions_as_one_does(tmp_path):
    """With DDP and with FSDP2: the same weights, averages, losses and snapshots."""
    ends = {}
    for name, count, shard in (("alone", 1, False), ("ddp", 2, False), ("fsdp", 2, True)):
        words = tmp_path / name, shard, tmp_path / f"{name}.pt"
        job = Job(count, tmp_path / f"{name}.said", train_with_every_kind, *words)
        assert job.wait() == [0] * count, [job.words(rank) for rank in range(count)]
        ends[name] = torch.load(tmp_path / f"{name}.pt", weights_only=True)
    assert all(gate != 0 for name, gate in ends["alone"].items() if name.endswith("caption.gate"))  # all is learned
    for name in ("ddp", "fsdp"):
        assert_same_numbers(ends[name], ends["alone"])
        for ours, theirs in zip(stats(tmp_path / name), stats(tmp_path / "alone"), strict=True):
            assert ours.keys() == theirs.keys()
            assert all(ours[key] == pytest.approx(theirs[key], rel=1e-5) for key in ours), ours["images_seen"]


def test_datasets_carry_conditions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(Path("data.zip"))
    assert "condition caption: tokens [1, 5]" in succeed("dataset", "info", "data.zip")
    assert "condition edges: an image of 1 channel" in succeed("dataset", "stats", "data.zip")
    assert "none broken" in succeed("dataset", "check", "data.zip")
    succeed("dataset", "convert", "data.zip", "small.zip", "--resolution", 4, "--workers", 1)
    old, new = open_dataset("data.zip"), open_dataset("small.zip")
    for name in ("colour", "edges"):
        assert torch.equal(old.read_condition(name, range(40)), new.read_condition(name, range(40)))
    assert new.known_condition("age")["mean"] == [19.5]
    with zipfile.ZipFile("data.zip", "a") as file:
        file.writestr("class0/late.png", encoded(Image.new("RGB", (8, 8))))
    refused = edm2_command("dataset", "check", "data.zip")
    assert "conditions/age: has no file for 1 of 41 images, the first is class0/late.png" in refused.out + refused.err


@pytest.mark.parametrize("value", [30, "a red hat", ["a", "b"], torch.zeros(2, 3)])
def test_a_slip_in_a_condition_s_name_is_said(value):
    with pytest.raises(ValueError, match=r"conditions? agee"):
        list(edm2.generate(edm2.load("digits8"), range(2), conditions={"agee": value}, num_steps=1))


def test_a_text_encoder_that_is_not_there_is_one_line(tmp_path):
    write_data(tmp_path / "data.zip")
    (tmp_path / "captions.json").write_text("{}")
    refused = edm2_command(
        "dataset", "embed", tmp_path / "data.zip", tmp_path / "captions.json", "--text-encoder", tmp_path / "nowhere"
    )
    assert refused.code == 1
    assert re.search("text encoder .*nowhere: cannot be loaded|pip install 'edm2.text.'", complaint(refused.err))


@pytest.mark.parametrize("content", ["words", [1, 2], [["a.png"]], [[5, "words"]], [[None, None]]], ids=json.dumps)
def test_captions_of_another_form_are_refused_in_one_line(tmp_path, content):
    write_data(tmp_path / "data.zip")
    (tmp_path / "captions.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"captions.json: must be JSON of the form"):
        embed(tmp_path / "data.zip", tmp_path / "captions.json", encoder=None, name="text")


def test_the_program_of_a_text_encoder_is_not_run_whatever_is_answered(tmp_path, monkeypatch):
    """A snapshot of a stranger names its encoder."""
    pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    own = {"AutoConfig": "program.Config", "AutoModel": "program.Model", "AutoTokenizer": ["program.Tokenizer", None]}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "own", "auto_map": own}))
    (tmp_path / "program.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(TextEncoderError, match="cannot be loaded"):
        load_text_encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_captions_become_tokens_and_texts_ask_for_images(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    encoder = save_tiny_text_encoder(tmp_path / "encoder", WORDS)
    write_data(Path("data.zip"))
    names = [open_dataset("data.zip").item_name(i) for i in range(40)]
    captions = {name: "one bold" if i % 2 else "two" for i, name in enumerate(names)}
    command = ("dataset", "embed", "data.zip", "captions.json", "--text-encoder", encoder, "--name", "text")
    Path("captions.json").write_text(json.dumps(dict(list(captions.items())[1:])))
    assert f"has no caption for 1 images, the first is {names[0]}" in complaint(edm2_command(*command).err)
    Path("captions.json").write_text(json.dumps(captions))
    assert "condition text in data.zip: at most 2 tokens of 16 numbers" in succeed(*command)
    assert "has a condition text already" in complaint(edm2_command(*command).err)
    condition = describe_condition(open_dataset("data.zip"), "text")
    assert condition.encoder == str(encoder)
    rows = rows_of_conditions([condition], {"text": ["one bold", "two"]}, 2)["text"]
    stored = open_dataset("data.zip").read_condition("text", [1, 0])
    torch.testing.assert_close(rows, stored, rtol=1e-3, atol=1e-3, equal_nan=True)
    with pytest.raises(ValueError, match="takes numbers or a file, not the text"):
        rows_of_conditions([dataclasses.replace(condition, encoder=None)], {"text": "one"}, 1)
