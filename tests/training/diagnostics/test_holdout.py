"""The loss per noise level on held-out images."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_run import tiny_config

import edm2
from edm2.networks import NetworkConfig, build_network
from edm2.training import (
    NOISE_DISTRIBUTIONS,
    ArrayDataset,
    EDM2Loss,
    LnNormal,
    codec_from_json,
    noise_distribution,
    open_dataset,
)
from edm2.training.data.batches import Batch, BatchStream
from edm2.training.data.dataset import evenly_spaced_indices
from edm2.training.diagnostics.holdout import NOISE_QUANTILES, measure_loss
from edm2.training.distributed.processes import ONE_PROCESS
from edm2.training.distributed.strategies import SingleProcess
from edm2.training.randomness import PositionRandom
from edm2.training.run import output as output_module
from edm2.training.run.output import Output
from edm2.training.run.run_folder import RunFolder


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return build_network(NetworkConfig(16, 3, 0, model_channels=8, channel_mult=(1, 2), num_blocks=1)).eval()


@pytest.mark.parametrize("name", NOISE_DISTRIBUTIONS)
def test_an_untrained_network_has_unit_loss_at_all_levels_of_any_distribution(untrained, name):
    """At quantiles of the distribution. 12,288 elements err by 1.3 %, four times that."""
    images = 0.5 * torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    measured = measure_loss(untrained, Batch(images), noise_distribution(name), batch_size=5)
    assert all(low < high for low, high in zip(measured.sigmas, measured.sigmas[1:], strict=False))
    assert measured.losses == pytest.approx([1] * len(NOISE_QUANTILES), abs=0.052)
    if name == "ln-normal":  # at these deviations from the mean
        normal = [(math.log(sigma) + 0.4) / 1.0 for sigma in measured.sigmas]
        assert normal == pytest.approx(NOISE_QUANTILES, abs=1e-5)


@pytest.mark.parametrize("scale", [0.05, 0.5, 2.0])
def test_the_error_of_a_network_that_outputs_nothing_is_1_on_any_data(untrained, scale):
    images = scale * torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    measured = measure_loss(untrained, Batch(images), LnNormal(-0.4, 1.0), batch_size=16)
    assert measured.error(images.square().mean().item(), 0.5) == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_the_error_is_the_mean_that_training_reports():
    """Of one network on the same images: at nine levels, weighted, and at 8,000 that training draws. To 5 %."""
    net, codec = edm2.load("digits8"), codec_from_json(edm2.read_metadata("digits8")["codec"])
    data = open_dataset("digits")
    images, labels = codec.encode(data.images(range(0, 1600, 8))), data.labels(range(0, 1600, 8))
    measured = measure_loss(net, Batch(images, labels), LnNormal(-0.4, 1.0), batch_size=200)
    reported = {"error": 0.0, "error_of_zero": 0.0}
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(40):
            add = SimpleNamespace(report=lambda name, value: reported.update({name: reported[name] + float(value)}))
            EDM2Loss(-0.4, 1.0)(net, images, labels, context=add)
    of_training = reported["error"] / reported["error_of_zero"]
    assert measured.error(images.square().mean().item(), 0.5) == pytest.approx(of_training, rel=0.05)


# ------------------------------------------------------------------------------------------------ which images


def test_evenly_spaced_indices():
    """Index i is at i / count of the way."""
    for length, count in ((10, 4), (10, 10), (10, 99), (7, 1), (7, 0), (0, 3)):
        indices = evenly_spaced_indices(length, count)
        assert indices.dtype == np.int64
        assert indices.tolist() == [i * length // min(length, count) for i in range(min(length, count))]


@pytest.mark.parametrize("holdout", [30, 270])
def test_losses_are_measured_on_images_of_all_classes(tmp_path, monkeypatch, holdout):
    """Even of a dataset sorted by class, and if more images are held out than trained on."""
    classes = 3
    dataset = ArrayDataset(torch.zeros(300, 1, 8, 8, dtype=torch.uint8), torch.arange(300) * classes // 300)
    config = tiny_config(tmp_path, holdout=holdout)
    feed = BatchStream(config, dataset, PositionRandom(0, 4, torch.device("cpu")))
    output = Output(config, RunFolder(tmp_path), feed, SingleProcess(ONE_PROCESS), None, [], 0)
    measured = []

    def noting_labels(net, batch, *others):
        measured.append(batch.labels)
        return measure_loss(net, batch, *others)

    monkeypatch.setattr(output_module, "measure_loss", noting_labels)
    output.measured_losses(build_network(config.network).eval(), LnNormal(), 30)
    for labels in measured:
        assert labels.bincount(minlength=classes).tolist() == pytest.approx([10] * classes, abs=6)
    assert [len(labels) for labels in measured] == [30, 30]
