"""A run follows from the preset, the data and the user's choices; impossible combinations are refused in one line."""

import pytest
import torch
from planned_runs import images, plan, rgb64, with_statistics

from edm2.planning.plan import default_preset
from edm2.planning.presets import PRESETS, Preset
from edm2.training import ArrayDataset, open_dataset


def test_the_data_decide_size_and_classes():
    labelled = images(3, 16, 16, classes=4)
    config = plan(labelled)
    assert (config.network.img_resolution, config.network.img_channels, config.network.label_dim) == (16, 3, 4)
    assert (config.data, config.preset) == ("data.zip", "digits8")
    assert plan(images(1, 8, 16)).network.img_resolution == (8, 16)
    assert plan(labelled, conditional=True).network.label_dim == 4
    assert plan(labelled, conditional=False).network.label_dim == 0
    for conditional in (None, False):
        assert plan(images(), conditional=conditional).network.label_dim == 0
    config = plan(open_dataset("digits"))
    assert config.network.label_dim == 10
    assert config.standardize


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
    with pytest.raises(ValueError, match=r"first image has 30x30 .* edm2 dataset convert .* --resolution 32"):
        plan(images(3, 30, 30), "edm2-small-32")


def test_statistics_in_the_dataset_are_used_unless_somebody_says_otherwise(monkeypatch):
    """The paper trains ImageNet-64 on [-1, 1], so its presets do; a user may always decide."""
    plain = {"model_channels": 8, "channels_per_head": 8}
    assert plan(with_statistics(images(3, 16, 16)), "edm2-small-32", **plain).standardize
    assert not plan(with_statistics(images(3, 16, 16)), "edm2-small-32", standardize=False, **plain).standardize
    assert not plan(with_statistics(rgb64()), "edm2-img64-xs").standardize
    assert plan(with_statistics(rgb64()), "edm2-img64-xs", standardize=True).standardize
    monkeypatch.setitem(PRESETS, "silent", Preset("says nothing", network={"model_channels": 64}))
    assert plan(with_statistics(rgb64()), "silent").standardize
    assert not plan(rgb64(), "silent").standardize


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
    assert default_preset(dataset, data, "cuda") == preset
    assert plan(dataset, preset).preset == preset
