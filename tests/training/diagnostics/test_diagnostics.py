"""Measurements against their definitions, and a measured run is the same run to the bit."""

import functools
import json
import math
import operator

import pytest
import torch
from tiny_run import assert_same_bits, final_state, run, stats, tiny_config, tiny_data
from torch import nn

from edm2.networks import NetworkConfig, build_network
from edm2.networks.blocks import blocks
from edm2.training import Trainer, TrainingConfig
from edm2.training.data.batches import Batch
from edm2.training.diagnostics import Diagnostics
from edm2.training.diagnostics.batches import ProbeBatch, by_bin, over_all_levels
from edm2.training.diagnostics.layers import block_layers, weight_layers
from edm2.training.diagnostics.magnitudes import measure_activations, measure_weights
from edm2.training.diagnostics.noise_levels import measure_noise_levels
from edm2.training.diagnostics.updates import measure_update
from edm2.training.loss.noise import LnNormal, levels
from edm2.training.loss.objective import DenoisingLoss, EDM2Loss
from edm2.training.loss.weighting import EDM, edm_weight
from edm2.training.run.logging import read_stats

BUCKETS = {"Enc 8x8", "Enc 4x4", "Dec 4x4", "Dec 8x8"}


def tiny_net(config: str = "G", **changes) -> nn.Module:
    torch.manual_seed(0)
    network = NetworkConfig(
        8, 1, 3, config=config, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,),
        channels_per_head=8, logvar_channels=8, **changes,
    )  # fmt: skip
    return build_network(network)


def with_gains(net: nn.Module) -> nn.Module:
    """The network with all gains at 1, so that no branch outputs zero."""
    for parameter in net.parameters():
        if parameter.ndim == 0:
            parameter.data.fill_(1)
    return net


def some_images(count: int = 12) -> Batch:
    images = 0.5 * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.arange(count) % 3)


def records(folder) -> list[dict]:
    return read_stats(folder / "diagnostics.jsonl")


# ------------------------------------------------------------------------------------------------- which layers


@pytest.mark.parametrize("config", "ABCDEFG")
def test_every_weight_in_a_block_counts_and_no_other(config):
    net = tiny_net(config)
    expected = {
        name.removesuffix(".weight")
        for name, parameter in net.named_parameters()
        if name.endswith(".weight") and parameter.ndim >= 2 and name.startswith(("unet.enc.", "unet.dec."))
    }
    expected.discard("unet.enc.8x8_conv")  # the input convolution is in no block
    assert {layer.name for layer in block_layers(net)} == expected
    assert {layer.bucket for layer in block_layers(net)} == BUCKETS
    assert any("qkv" in layer.name for layer in block_layers(net))  # attention
    assert len(weight_layers(net)) > len(block_layers(net))
    assert len(blocks(net)) == 3 + 7  # block, down, block; two at the bottom, up, and two per level


# ------------------------------------------------------------------------------- activations and weights (A.6)


@pytest.mark.parametrize("config", "ABCDEFG")
def test_activations_are_the_root_mean_square_of_each_feature(config):
    """By definition, from the outputs themselves, all at once in float64."""
    net = with_gains(tiny_net(config)).eval()
    batch = over_all_levels(some_images(), LnNormal())
    outputs = {}
    for layer in block_layers(net):
        layer.module.register_forward_hook(
            lambda m, inputs, output, layer=layer: outputs.setdefault(layer, []).append(output.detach().double())
        )
    measured = measure_activations(net, batch.split(5))  # in parts of 5, 5 and 2
    magnitudes: dict[str, list[float]] = {}
    for layer, parts in outputs.items():
        output = torch.cat(parts)
        for feature in output.unbind(1):
            magnitudes.setdefault(layer.bucket, []).append(float(feature.square().mean().sqrt()))
    assert measured["images"] == 12
    for bucket, values in magnitudes.items():  # five digits are recorded
        assert measured["max"][bucket] == pytest.approx(max(values), rel=1e-4)
        assert measured["mean"][bucket] == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_weights_are_measured_as_they_are_stored():
    net = tiny_net("G")
    block = net.unet.enc["4x4_block0"]
    with torch.no_grad():
        for layer in block_layers(net):
            layer.module.weight.fill_(2)
        block.conv_res1.weight[0].fill_(10)
    measured = measure_weights(net)
    assert measured["max"]["Enc 8x8"] == measured["mean"]["Enc 8x8"] == 2
    assert measured["max"]["Enc 4x4"] == 10
    units = sum(len(layer.weight) for layer in block_layers(net) if layer.bucket == "Enc 4x4")
    assert measured["mean"]["Enc 4x4"] == pytest.approx(2 + 8 / units, rel=1e-4)


# --------------------------------------------------------------------------------------------------- updates


def shrunk(config: str):
    """Network, optimizer and record of a step in which every weight shrinks by a tenth."""
    net = tiny_net(config)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for parameter in net.parameters():
        parameter.grad = parameter.detach().clone()
    with measure_update(net, optimizer) as record:
        optimizer.step()
    return net, optimizer, record


def test_update_of_gradient_descent_is_the_learning_rate_times_the_gradient():
    net, optimizer, record = shrunk("G")
    for layer in weight_layers(net):
        layers = record.updates["layers"]
        assert layers["relative"][layer.name] == pytest.approx(0.1, rel=1e-4)
        rms = float(layer.weight.square().mean().sqrt()) / 0.9
        assert layers["effective_lr"][layer.name] == pytest.approx(0.1 / rms, rel=1e-4)
    assert record.updates["relative"] == pytest.approx(dict.fromkeys(BUCKETS, 0.1), rel=1e-4)
    for bucket in BUCKETS:
        weights = torch.cat([layer.weight.flatten() for layer in block_layers(net) if layer.bucket == bucket])
        rms = float(weights.square().mean().sqrt()) / 0.9
        assert record.updates["effective_lr"][bucket] == pytest.approx(0.1 / rms, rel=1e-4)
    optimizer.step()
    assert record.updates["relative"]["Enc 8x8"] == pytest.approx(0.1, rel=1e-4)  # the second step is not measured
    *_, record = shrunk("A")  # starts the last convolution of each branch at zero; the block's other weights count
    assert record.updates["layers"]["relative"]["unet.dec.8x8_block1.conv1"] is None
    assert record.updates["relative"] == pytest.approx(dict.fromkeys(BUCKETS, 0.1), rel=1e-4)


# ---------------------------------------------------------------------------------------------- noise levels


def test_bins_divide_the_noise_levels_of_training_and_have_the_same_images():
    bins = by_bin(some_images(6), LnNormal(), 4)
    sigmas = torch.stack([batch.sigma for batch in bins.values()])
    assert torch.equal(sigmas.flatten(), levels(LnNormal(), 24).float())
    for median, batch in bins.items():
        assert batch.sigma.min() <= median <= batch.sigma.max()
        assert torch.equal(batch.noise, next(iter(bins.values())).noise)


def naive(net: nn.Module, loss: DenoisingLoss, probe: ProbeBatch) -> tuple[float, float]:
    """Gradient norm and EDM loss of a bin by ordinary backward."""
    net.zero_grad()
    batch = probe.batch
    elements = loss(net, batch.images, batch.labels, sigma=probe.sigma, noise=probe.noise)
    (elements.sum() / len(batch.images)).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters() if p.grad is not None))
    net.zero_grad()
    denoised = net(probe.noisy, probe.sigma, batch.labels).detach()
    weight = edm_weight(probe.sigma.reshape(-1, 1, 1, 1), net.sigma_data)
    return norm, float((weight * (denoised - batch.images).square()).mean())


@pytest.mark.parametrize("config", "ABCDEFG")
def test_gradient_loss_and_uncertainty_of_each_bin(config):
    net = with_gains(tiny_net(config)).eval()
    loss = EDM2Loss(sigma_data=net.sigma_data)
    bins = by_bin(some_images(6), LnNormal(), 3)
    measured = measure_noise_levels(net, loss, bins, images_per_forward=4)
    assert measured["noise_levels"]["images"] == 6
    for (sigma, batch), name in zip(bins.items(), measured["noise_levels"]["loss"], strict=True):
        assert float(name) == pytest.approx(sigma, rel=1e-3)
        norm, error = naive(net, loss, batch)
        # float32 sums in another order; five digits are recorded
        assert measured["noise_levels"]["gradient_norm"][name] == pytest.approx(norm, rel=1e-3)
        assert measured["noise_levels"]["loss"][name] == pytest.approx(error, rel=1e-3)
        u = net.log_variance(batch.sigma.log() / 4)
        assert measured["noise_levels"]["u"][name] == pytest.approx(
            float(u.detach().exp().mean().log()), rel=1e-3, abs=1e-4
        )


def test_measuring_leaves_gradients_mode_and_random_numbers_alone():
    net = tiny_net("G", dropout=0.5).train()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 7)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure_noise_levels(net, EDM2Loss(), by_bin(some_images(4), LnNormal(), 2), 4)
    assert net.training
    measure_activations(net.eval(), [over_all_levels(some_images(4), LnNormal())])
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p.grad, torch.full_like(p, 7)) for p in net.parameters())


def test_fractions_of_clipped_activations_and_of_nonfinite_gradients():
    """Neither clipping without a bound nor u without training it is recorded."""
    net = with_gains(tiny_net("G", clip_act=0.5))
    batch, loss = some_images(4), EDM2Loss()
    measured = measure_noise_levels(net, loss, by_bin(batch, LnNormal(), 2), 4)
    assert 0.3 < measured["clipped_activations"] < 0.8  # of unit Gaussians 62 % lie beyond half a deviation
    assert measured["nonfinite"]["entries"] == 0
    batch.images[0, 0, 0, 0] = math.nan
    measured = measure_noise_levels(net, loss, by_bin(batch, LnNormal(), 2), 4)
    assert 0.5 < measured["nonfinite"]["entries"] <= 1
    json.dumps(measured, allow_nan=False)
    net, loss = tiny_net("G", clip_act=None), DenoisingLoss(LnNormal(), net.sigma_data, EDM())
    measured = measure_noise_levels(net, loss, by_bin(some_images(2), LnNormal(), 2), 2)
    assert set(measured["noise_levels"]) == {"gradient_norm", "loss", "images"}
    assert measured["clipped_activations"] is None


# ----------------------------------------------------------------------------------------------------- a run


def measured_config(out, **changes) -> TrainingConfig:
    return tiny_config(out, diagnostics_every=24, **changes)


@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_a_measured_run_is_the_same_run_to_the_bit(tmp_path, dropout):
    plain = run(tiny_config(tmp_path / "plain", dropout=dropout, holdout=5))
    measured = run(measured_config(tmp_path / "measured", dropout=dropout, holdout=5))
    assert_same_bits(final_state(plain), final_state(measured))
    assert not (tmp_path / "plain/diagnostics.jsonl").exists()


def test_a_run_records_its_first_step_its_last_and_the_multiples_between(tmp_path):
    run(measured_config(tmp_path))
    assert [record["images_seen"] for record in records(tmp_path)] == [8, 24, 48, 72, 96]
    assert [record["nonfinite"]["steps"] for record in records(tmp_path)] == [1, 2, 3, 3, 3]
    first, *_, last = records(tmp_path)
    assert next(iter(first)) == "images_seen"
    assert last["diagnostics_seconds"] > 0
    assert last["activations"]["sigma_rel"] == 0.05
    assert first["updates"]["lr"] == 0  # the ramp starts at zero
    assert first["updates"]["relative"]["Dec 8x8"] == 0
    assert last["updates"]["relative"]["Dec 8x8"] > 0
    for record in records(tmp_path):  # forced weight normalization: 1 up to its epsilon of 1e-4
        raw = record["weights"]["raw"]["max"]
        assert raw == pytest.approx(dict.fromkeys(raw, 1), abs=2e-4)
        # An average of vectors of length 1, and of half the square of a relative update more: not yet projected back.
        assert max(record["weights"]["ema"]["max"].values()) <= 1.01
        assert record["updates"]["effective_lr"]["Enc 4x4"] == pytest.approx(record["updates"]["lr"], rel=2e-3)


def test_stopped_and_resumed_records_are_those_of_a_run_never_stopped(tmp_path):
    """Records after the last checkpoint of a killed run are measured again, not repeated."""
    run(measured_config(tmp_path / "whole"))
    parts = measured_config(tmp_path / "parts", checkpoint_every=40)

    class Killed(Trainer):
        def save_checkpoint(self):
            if self.images_seen > 80:
                raise KeyboardInterrupt
            super().save_checkpoint()

    with pytest.raises(KeyboardInterrupt):
        Killed(parts, dataset=tiny_data()).run()
    assert records(tmp_path / "parts")[-1]["images_seen"] == 96
    run(parts)
    ours, theirs = (records(tmp_path / name) for name in ("parts", "whole"))
    assert [r | {"diagnostics_seconds": 0} for r in ours] == [r | {"diagnostics_seconds": 0} for r in theirs]


def test_tensorboard_gets_every_number_of_every_report_and_measurement(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(measured_config(tmp_path, holdout=5))
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    sigma = next(iter(records(tmp_path)[0]["noise_levels"]["loss"]))
    layer = "unet.dec.8x8_block1.conv_res1"
    measured = ("activations/max/Dec 8x8", "weights/raw/mean/Enc 4x4", f"updates/layers/relative/{layer}",
                f"noise_levels/loss/{sigma}", "clipped_activations", "nonfinite/entries")  # fmt: skip
    reported = ("loss", "lr", "grad_norm", "holdout_loss")
    for names, found in ((measured, records(tmp_path)), (reported, stats(tmp_path))):
        for name in names:
            path = name.split("/")
            stored = {r["images_seen"]: functools.reduce(operator.getitem, path, r) for r in found if path[0] in r}
            logged = {event.step: event.value for event in events.Scalars(name)}
            assert logged == pytest.approx(stored, rel=1e-6), name


def test_longer_intervals_measure_more_images_up_to_the_papers_number():
    def of(every: int) -> Diagnostics:
        return Diagnostics(tiny_config("unused", diagnostics_every=every), LnNormal())

    assert (of(100).activation_images, of(100).images_per_bin) == (64, 8)
    assert (of(100 << 20).activation_images, of(100 << 20).images_per_bin) == (4096, 512)
