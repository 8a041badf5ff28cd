"""The description of a run before it starts is true: data, scaling, costs, snapshots."""

from typing import Any

import pytest
import torch
from planned_runs import images, plan, rgb64, with_statistics

from edm2.networks import build_network
from edm2.planning.costs import count_flops, estimate_memory
from edm2.tools.reports import run_plan
from edm2.tools.reports.run_plan import describe_plan
from edm2.training import ArrayDataset, Dataset, RunFolder, Trainer

SOUND = {"duration": 6_400, "rampup_images": 0, "holdout": 0, "sample_every": None}
"""Choices that nothing is said against."""


def described(dataset: Dataset, preset: str = "edm2-small-32", **choices: Any) -> dict[str, str]:
    tiny = {"model_channels": 8, "channels_per_head": 8, "batch_size": 8}
    return dict(describe_plan(plan(dataset, preset, **tiny | SOUND | choices), dataset))


def test_the_description_tells_the_truth():
    dataset = images(classes=4)
    config = plan(dataset, batch_size=16, duration=320, micro_batch=8, rampup_images=6_400, ref_batches=500)
    lines = dict(describe_plan(config, dataset))
    parameters = sum(p.numel() for p in build_network(config.network).parameters())
    assert "40 images, 4 of them held out, 4 classes" in lines["data"]  # a tenth, where the preset asks for more
    assert f"{parameters:,} parameters, 8x8" in lines["network"]
    assert "320 images in steps of 16" in lines["training"]
    assert "8 images per forward pass" in lines["device"]
    assert "rising over 6,400 images, falling after 8,000" in lines["learning rate"]
    assert "EMA lengths 0.05 and 0.1" in lines["snapshots"]
    assert "labels not used" in dict(describe_plan(plan(dataset, conditional=False), dataset))["data"]
    assert "no labels" in dict(describe_plan(plan(images()), images()))["data"]
    assert "one from each of 64 strata" in described(images(), batch_size=64)["noise levels"]
    assert described(images(), batch_size=64, stratified_sigma=False)["noise levels"] == "ln sigma ~ N(-1.2, 1.2²)"


@pytest.mark.parametrize("every", [1, 16, 20, 24, 48, 64, 1000])
def test_the_number_of_snapshots_is_forecast(tmp_path, every):
    """One per step at most, and one at the end, wherever the interval falls."""
    dataset = images(count=16)
    config = plan(
        dataset, out=str(tmp_path / "run"), model_channels=8, channels_per_head=8, batch_size=16, duration=64,
        holdout=0, snapshot_every=every, checkpoint_every=1000, sample_every=None,
    )  # fmt: skip
    Trainer(config, dataset=dataset).run()
    written = len(list(RunFolder(config.out).snapshots.iterdir()))
    assert f"{written} ({written // 2} time" in dict(describe_plan(config, dataset))["snapshots"]


@pytest.mark.slow
def test_the_plan_says_how_data_are_scaled():
    assert "statistics stored in the dataset" in described(with_statistics(images()))["scaling"]
    assert "measured when training starts" in described(images())["scaling"]
    assert described(images(), standardize=False)["scaling"] == "pixels onto [-1, 1]"
    assert described(rgb64(), "edm2-img64-xs")["scaling"] == "pixels onto [-1, 1], as in the paper"
    latents = ArrayDataset(torch.zeros(40, 8, 32, 32))
    assert "the paper's statistics" in described(latents, "edm2-latent-small")["scaling"]
    latents.latents = {"mean": [0.0] * 4, "std": [1.0] * 4}
    assert "the dataset's statistics" in described(latents, "edm2-latent-small")["scaling"]


@pytest.mark.parametrize("sigma_data", [0.31, 0.39, 0.41, 0.59, 0.7])
def test_pixels_far_from_the_networks_sigma_data_are_warned_of(sigma_data):
    """The warning comes from 20 % on, and only without --standardize."""
    warned = not 0.4 <= sigma_data <= 0.6
    dataset = with_statistics(images(), sigma_data)
    assert "WARNING" not in described(dataset)
    lines = described(dataset, standardize=False)
    assert ("WARNING" in lines) == warned
    if warned:
        assert f"{sigma_data:.2f}" in lines["WARNING"]
        assert "--standardize" in lines["WARNING"]


def test_costs_are_those_of_the_planning():
    dataset = images()
    config = plan(dataset, batch_size=16, duration=1_600)
    lines = dict(describe_plan(config, dataset))
    flops = count_flops(config.network)
    assert lines["compute"] == (
        f"{flops / 1e6:.3g} MFLOPs to evaluate an image, {3 * flops / 1e6:.3g} MFLOPs to train on it, "
        f"{4_800 * flops / 1e9:.3g} GFLOPs in all"
    )
    memory = estimate_memory(config)
    assert f"about {memory.total / 1e6:.3g} MB" in lines["memory"]
    assert "each visited 44 times" in lines["training"]  # 1600 / (40 - 4)
    config = plan(dataset, batch_size=32, shard=True)
    alone, four = dict(describe_plan(config, dataset)), dict(describe_plan(config, dataset, processes=4))
    assert "cpu, fp32, 32 images per forward pass" in alone["device"]
    assert "4 x cpu, fp32, 8 images per forward pass" in four["device"]
    assert "in each process" in four["memory"]
    assert f"{estimate_memory(config, 4).persistent / 1e6:.3g} MB for weights" in four["memory"]  # a fourth of them
    assert estimate_memory(config, 4).persistent < estimate_memory(config).persistent / 3


def test_too_much_for_the_device_is_warned_of_with_what_would_fit(monkeypatch):
    dataset = images()
    config = plan(dataset, "edm2-small-32", model_channels=16, channels_per_head=16, **SOUND)
    assert "WARNING" not in dict(describe_plan(config, dataset))
    monkeypatch.setattr(run_plan, "device_memory", lambda device: 450_000_000)
    lines = dict(describe_plan(config, dataset))
    assert "cpu has 450 MB; try --micro-batch 16" in lines["WARNING"]
    monkeypatch.setattr(run_plan, "device_memory", lambda device: 1_000_000)
    assert "choose a smaller network" in dict(describe_plan(config, dataset))["WARNING"]
