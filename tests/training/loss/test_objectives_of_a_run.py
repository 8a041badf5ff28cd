"""Configuration, weighting, noise levels and averages of a run."""

from dataclasses import replace

import pytest
import torch
from tiny_run import StopAt, assert_same_bits, final_state, run, stats, tiny_config, tiny_data

from edm2.networks import ImageCondition, NetworkConfig
from edm2.post_hoc_ema import read_metadata
from edm2.training import Pareto, Trainer, TrainingConfig
from edm2.training.loss.by_name import WEIGHTINGS


def ladder_config(out, config: str, **changes) -> TrainingConfig:
    network = NetworkConfig(
        8, 1, 3, config=config, model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,),
        channels_per_head=32, logvar_channels=8,
    )  # fmt: skip
    settings = {
        "duration": 32, "batch_size": 8, "ref_lr": 0.002, "rampup_images": 0, "status_every": 16,
        "snapshot_every": 16, "checkpoint_every": 16, "workers": 0,
    }  # fmt: skip
    return TrainingConfig(data="tiny", out=str(out), network=network, **settings | changes)


def stopped_and_resumed(config: TrainingConfig, stop_at: int, **options) -> Trainer:
    assert run(config, callbacks=[StopAt(stop_at)], **options).images_seen == stop_at
    torch.manual_seed(123)
    return run(config, **options)


@pytest.mark.parametrize("config", "ABCDEF")
def test_every_configuration_trains_and_resumes(tmp_path, config):
    whole = run(ladder_config(tmp_path / "whole", config))
    parts = stopped_and_resumed(ladder_config(tmp_path / "parts", config), stop_at=16)
    assert_same_bits(final_state(whole), final_state(parts))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_trains(tmp_path, weighting):
    """Those without u(sigma) leave its head where it was, except for its forced normalization."""
    config = tiny_config(tmp_path, duration=16, weighting=weighting)
    fresh = Trainer(config, dataset=tiny_data()).net.logvar_linear.effective_weight()
    head = run(config).net.logvar_linear
    assert head.weight.requires_grad == (weighting == "uncertainty")
    if weighting != "uncertainty":  # eps is added at each of two normalizations
        torch.testing.assert_close(head.effective_weight(), fresh, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_weights_learned_from_gradients_resume_to_the_bit(tmp_path, dropout, monkeypatch):
    monkeypatch.setattr(Pareto, "is_due", lambda weighting, steps: steps > 0)
    settings = {"weighting": "pareto", "dropout": dropout}
    whole = run(tiny_config(tmp_path / "whole", **settings))
    parts = stopped_and_resumed(tiny_config(tmp_path / "parts", **settings), stop_at=40)
    assert_same_bits(final_state(whole), final_state(parts))
    ours, theirs = whole.step.loss.weighting, parts.step.loss.weighting
    assert_same_bits(ours.state_dict(), theirs.state_dict())
    assert not torch.equal(ours.weights, torch.full_like(ours.weights, 1 / 16))


def test_weights_are_learned_from_gradients_with_the_conditions(tmp_path, monkeypatch):
    """Without one that it needs, a network has no output."""
    monkeypatch.setattr(Pareto, "is_due", lambda weighting, steps: steps > 0)
    config = tiny_config(tmp_path, weighting="pareto", make_conditions=("lowres=downsample:2",))
    network = replace(config.network, conditions=(ImageCondition("lowres", 1),))
    weighting = run(replace(config, network=network)).step.loss.weighting
    assert not torch.equal(weighting.weights, torch.full_like(weighting.weights, 1 / 16))


def test_loss_scaling_is_undone_by_adam_and_in_the_gradient_norm_that_is_reported(tmp_path):
    """Except for its epsilon, 1e-8: it matters where gains start at zero, which is nowhere in config C."""
    plain = run(ladder_config(tmp_path / "plain", "C"))
    scaled = run(ladder_config(tmp_path / "scaled", "C", loss_scale=128.0))
    for name, weight in plain.net.named_parameters():
        torch.testing.assert_close(scaled.net.get_parameter(name), weight, rtol=1e-3, atol=1e-4)
    ours, theirs = ([r["grad_norm"] for r in stats(tmp_path / name)] for name in ("scaled", "plain"))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_traditional_average_is_stored_and_resumes(tmp_path):
    config = {"traditional_ema": 50_000_000}
    whole = run(tiny_config(tmp_path / "whole", **config))
    parts = stopped_and_resumed(tiny_config(tmp_path / "parts", **config), stop_at=40)
    assert_same_bits(whole.step.traditional_ema.average(), parts.step.traditional_ema.average())
    metadata = read_metadata(whole.folder.traditional_ema)
    assert metadata["half_life"] == 50_000_000
    assert metadata["images_seen"] == 96
    assert metadata["sigma_rel"] == pytest.approx(0.0629, abs=1e-4)


def test_noise_levels_come_from_the_distribution_that_was_asked_for(tmp_path):
    trainer = Trainer(tiny_config(tmp_path, noise="uniform"), dataset=tiny_data())
    sigma = trainer.step.draws.sigma(0, 2000)
    assert 0.002 <= float(sigma.min()) < 0.003
    assert 60 < float(sigma.max()) <= 80.001


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"weighting": "nonsense"}, "weighting='nonsense' is unknown"),
        ({"weighting": "p2", "weighting_gamma": 1e9}, "finite|zero"),
        ({"noise": "nonsense"}, "noise='nonsense' is unknown"),
        ({"loss_scale": 0.0}, "loss_scale=0.0 must be positive"),
        ({"traditional_ema": 0}, "traditional_ema=0 must be at least 1"),
    ],
)
def test_impossible_objectives_are_refused_with_the_configuration(tmp_path, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny_config(tmp_path, **change)
