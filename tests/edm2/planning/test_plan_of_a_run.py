"""A plan is the preset, the data and the user's choices; what does not fit together is refused in one line."""

from typing import Any

import pytest
import torch

from edm2.networks import build_network
from edm2.planning.costs import count_flops, estimate_memory
from edm2.planning.plan import default_preset, plan_run
from edm2.planning.presets import PRESETS, Preset
from edm2.tools.reports import run_plan
from edm2.tools.reports.run_plan import describe_plan
from edm2.training import ArrayDataset, Dataset, RunFolder, Trainer, open_dataset


def images(channels: int = 1, height: int = 8, width: int = 8, classes: int = 0, count: int = 40) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, height, width), generator=generator).to(torch.uint8)
    labels = torch.arange(count) % classes if classes else None
    return ArrayDataset(pixels, labels)


def plan(dataset: Dataset, preset: str = "digits8", conditional: bool | None = None, out: str = "run", **choices: Any):
    return plan_run(dataset, "data.zip", out, preset, conditional, choices)


def test_the_data_decide_size_and_classes():
    config = plan(images(3, 16, 16, classes=4))
    assert (config.network.img_resolution, config.network.img_channels, config.network.label_dim) == (16, 3, 4)
    assert plan(images(1, 8, 16)).network.img_resolution == (8, 16)
    assert plan(images()).network.label_dim == 0
    assert config.data == "data.zip"
    assert config.preset == "digits8"


def test_labels_are_used_unless_declined():
    labelled = images(classes=4)
    assert plan(labelled, conditional=True).network.label_dim == 4
    assert plan(labelled, conditional=False).network.label_dim == 0
    assert plan(images(), conditional=False).network.label_dim == 0


def test_choices_override_the_preset():
    config = plan(images(), model_channels=64, dropout=0.2, ref_lr=0.5, batch_size=64, sigma_rels=[0.2])
    assert config.network.model_channels == 64
    assert config.network.dropout == 0.2
    assert config.network.channel_mult == (1, 2)  # not chosen: the preset's
    assert (config.ref_lr, config.batch_size, config.sigma_rels) == (0.5, 64, (0.2,))
    assert config.rampup_images == PRESETS["digits8"].training["rampup_images"]


@pytest.mark.parametrize("shape", [(3, 64, 64), (4, 32, 32), (1, 8, 8)])
def test_a_preset_for_other_images_is_refused(shape):
    with pytest.raises(ValueError) as error:
        plan(images(*shape), "edm2-img512-s")
    assert "edm2-img512-s" in str(error.value)
    assert str(shape) in str(error.value)
    assert "data.zip" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preset": "edm2-img999-q"}, "edm2-img999-q.*digits8"),
        ({"conditional": True}, "no labels"),
        ({"batch_size": 100, "duration": 1001}, "duration=1001 .* batch_size=100"),
        ({"batch_size": 100, "micro_batch": 33}, "micro_batch=33"),
        ({"model_channels": 0}, "model_channels=0"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"ref_lr": -1}, "ref_lr=-1"),
        ({"sigma_rels": [0.5]}, "0.5"),
        ({"precision": "fp8"}, "fp8"),
    ],
    ids=str,
)
def test_impossible_choices_are_refused_in_one_line(arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        plan(images(), **arguments)
    assert "\n" not in str(error.value)


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match=r"first image has 30x30 .* edm2 dataset convert .* --resolution 32"):
        plan(images(3, 30, 30), "edm2-small-32")


def test_the_description_tells_the_truth():
    dataset = images(classes=4)
    config = plan(dataset, batch_size=16, duration=320, micro_batch=8, rampup_images=6_400, ref_batches=500)
    told = dict(describe_plan(config, dataset))
    parameters = sum(p.numel() for p in build_network(config.network).parameters())
    assert "40 images, 4 of them held out, 4 classes" in told["data"]  # a tenth, where the preset asks for more
    assert f"{parameters:,} parameters, 8x8" in told["network"]
    assert "320 images in steps of 16" in told["training"]
    assert "8 images per forward pass" in told["device"]
    assert "rising over 6,400 images, falling after 8,000" in told["learning rate"]
    assert "EMA lengths 0.05 and 0.1" in told["snapshots"]
    assert "labels not used" in dict(describe_plan(plan(dataset, conditional=False), dataset))["data"]
    assert "no labels" in dict(describe_plan(plan(images()), images()))["data"]


@pytest.mark.parametrize("every", [1, 16, 20, 24, 48, 64, 1000])
def test_it_foretells_the_number_of_snapshots(tmp_path, every):
    """One per step at most, and one at the end, wherever the interval falls."""
    dataset = images(count=16)
    config = plan(
        dataset, out=str(tmp_path / "run"), model_channels=8, channels_per_head=8, batch_size=16, duration=64,
        holdout=0, snapshot_every=every, checkpoint_every=1000, sample_every=None,
    )  # fmt: skip
    Trainer(config, dataset).run()
    written = len(list(RunFolder(config.out).snapshots.iterdir()))
    assert f"{written} ({written // 2} time" in dict(describe_plan(config, dataset))["snapshots"]


def test_digits_fit_their_preset():
    dataset = open_dataset("digits")
    config = plan_run(dataset, "digits", "run", "digits8", None, {})
    assert config.network.label_dim == 10
    assert config.standardize


# ------------------------------------------------------------------------------------------------ the data's scale


def with_statistics(dataset: Dataset, sigma_data: float = 0.5) -> Dataset:
    channels = dataset.shape[0]
    dataset.pixel_stats = {"mean": [100.0] * channels, "std": [127.5 * sigma_data] * channels, "sigma_data": sigma_data}
    return dataset


def rgb64() -> Dataset:
    return ArrayDataset(torch.zeros(40, 3, 64, 64, dtype=torch.uint8))


def test_statistics_in_the_dataset_are_used_unless_somebody_says_otherwise():
    """The paper trains ImageNet-64 on [-1, 1], so its presets do; a user may always decide."""
    plain = {"model_channels": 8, "channels_per_head": 8}
    assert plan(with_statistics(images(3, 16, 16)), "edm2-small-32", **plain).standardize
    assert not plan(with_statistics(images(3, 16, 16)), "edm2-small-32", standardize=False, **plain).standardize
    assert not plan(with_statistics(rgb64()), "edm2-img64-xs").standardize
    assert plan(with_statistics(rgb64()), "edm2-img64-xs", standardize=True).standardize


def test_a_preset_that_is_silent_leaves_it_to_the_statistics(monkeypatch):
    monkeypatch.setitem(PRESETS, "silent", Preset("says nothing", network={"model_channels": 64}))
    assert plan(with_statistics(rgb64()), "silent").standardize
    assert not plan(rgb64(), "silent").standardize


def told(dataset: Dataset, preset: str = "edm2-small-32", **choices: Any) -> dict[str, str]:
    tiny = {"model_channels": 8, "channels_per_head": 8, "batch_size": 8}
    return dict(describe_plan(plan(dataset, preset, **tiny | choices), dataset))


def test_the_plan_says_how_data_are_scaled():
    assert "statistics stored in the dataset" in told(with_statistics(images()))["scaling"]
    assert "measured when training starts" in told(images())["scaling"]
    assert told(images(), standardize=False)["scaling"] == "pixels onto [-1, 1]"
    assert told(rgb64(), "edm2-img64-xs")["scaling"] == "pixels onto [-1, 1], as in the paper"
    latents = ArrayDataset(torch.zeros(40, 8, 32, 32))
    assert "the paper's statistics" in told(latents, "edm2-latent-small")["scaling"]
    latents.latents = {"mean": [0.0] * 4, "std": [1.0] * 4}
    assert "the dataset's statistics" in told(latents, "edm2-latent-small")["scaling"]


@pytest.mark.parametrize("sigma_data", [0.31, 0.39, 0.41, 0.59, 0.7])
def test_pixels_far_from_the_networks_sigma_data_are_warned_of(sigma_data):
    """By more than 20 %, and only if nothing is done about it."""
    warned = not 0.4 <= sigma_data <= 0.6
    dataset = with_statistics(images(), sigma_data)
    assert "WARNING" not in told(dataset)
    lines = told(dataset, standardize=False)
    assert ("WARNING" in lines) == warned
    if warned:
        assert f"{sigma_data:.2f}" in lines["WARNING"]
        assert "--standardize" in lines["WARNING"]


# ---------------------------------------------------------------------------------------------------------- the costs


def test_the_plan_tells_what_a_run_costs():
    dataset = images()
    config = plan(dataset, batch_size=16, duration=1_600)
    told = dict(describe_plan(config, dataset))
    flops = count_flops(config.network)
    assert told["compute"] == (
        f"{flops / 1e6:.3g} MFLOPs to evaluate an image, {3 * flops / 1e6:.3g} MFLOPs to train on it, "
        f"{4_800 * flops / 1e9:.3g} GFLOPs in all"
    )
    memory = estimate_memory(config)
    assert f"about {memory.total / 1e6:.3g} MB" in told["memory"]
    assert "each visited 44 times" in told["training"]  # 1600 / (40 - 4)


def test_of_several_processes_the_plan_tells_what_each_takes():
    dataset = images()
    config = plan(dataset, batch_size=32, shard=True)
    alone, four = dict(describe_plan(config, dataset)), dict(describe_plan(config, dataset, processes=4))
    assert "cpu, fp32, 32 images per forward pass" in alone["device"]
    assert "4 x cpu, fp32, 8 images per forward pass" in four["device"]
    assert "in each process" in four["memory"]
    assert f"{estimate_memory(config, 4).persistent / 1e6:.3g} MB for weights" in four["memory"]  # a share of them
    assert estimate_memory(config, 4).persistent < estimate_memory(config).persistent / 3


def test_too_much_for_the_device_is_warned_of_with_what_would_fit(monkeypatch):
    dataset = images()
    config = plan(dataset, "edm2-small-32", model_channels=16, channels_per_head=16)
    assert "WARNING" not in dict(describe_plan(config, dataset))
    monkeypatch.setattr(run_plan, "device_memory", lambda device: 450_000_000)
    told = dict(describe_plan(config, dataset))
    assert "cpu has 450 MB; try --micro-batch 16" in told["WARNING"]
    monkeypatch.setattr(run_plan, "device_memory", lambda device: 1_000_000)
    assert "choose a smaller network" in dict(describe_plan(config, dataset))["WARNING"]


def test_stratified_noise_is_told():
    assert "one from each of 64 strata" in told(images(), batch_size=64)["noise levels"]
    assert told(images(), batch_size=64, stratified_sigma=False)["noise levels"] == "ln sigma ~ N(-1.2, 1.2²)"


@pytest.mark.parametrize(
    ("dataset", "data", "preset"),
    [
        (images(), "digits", "digits8"),
        (images(), "digits.zip", "edm2-small-32"),
        (images(3, 32, 32), "x.zip", "edm2-small-32"),
        (images(3, 32, 64), "x.zip", "edm2-small-64"),
        (ArrayDataset(torch.zeros(40, 8, 32, 32)), "x.zip", "edm2-latent-small"),
    ],
    ids=["digits", "8x8", "32x32", "32x64", "latents"],
)
def test_data_choose_their_preset(dataset, data, preset):
    assert default_preset(dataset, data) == preset
    assert plan(dataset, preset).preset == preset
