"""The training settings of configs A to G."""

import pytest

from edm2.planning.ladder import ladder_settings
from edm2.planning.plan import plan_run
from edm2.planning.presets import PRESETS
from edm2.training import open_dataset

NAMES = (
    "batch_size", "ref_lr", "ref_batches", "betas", "P_mean", "P_std", "loss_scale", "dropout", "weighting",
    "attn_resolutions", "clip_act", "traditional_ema",
)  # fmt: skip
TABLE_1 = {
    "A": (4096, 1e-4, 0, (0.9, 0.999), -1.2, 1.2, 100, 0.1, "edm", (32, 16, 8), None, 50_000_000),
    "B": (2048, 2e-4, 0, None, -0.4, 1.0, 100, 0.1, None, None, None, None),
    "C": (2048, 2e-4, 0, None, -0.4, 1.0, 100, 0.1, None, None, None, None),
    "D": (2048, 1e-2, 0, None, -0.4, 1.0, 1, 0.1, None, None, "kept", None),
    "E": (2048, 1e-2, 70_000, None, -0.4, 1.0, 1, 0.1, None, None, "kept", None),
    "F": (2048, 1e-2, 70_000, None, -0.4, 1.0, 1, 0.1, None, None, "kept", None),
    "G": (2048, 1e-2, 70_000, None, -0.4, 1.0, 1, 0.0, None, None, "kept", None),
}
"""The paper's Table 1 for the S size; None is the default, which no config touches."""

UNSAID = {"batch_size": 2048, "loss_scale": 1, "clip_act": "kept"}


@pytest.mark.parametrize("architecture", TABLE_1)
def test_settings_are_those_of_table_1(architecture):
    """A config changes nothing else, and there is no other."""
    preset = PRESETS["edm2-img512-s"]
    before = preset.network | preset.training
    settings = ladder_settings(architecture, before)
    assert settings["config"] == architecture
    for name, expected in zip(NAMES, TABLE_1[architecture], strict=True):
        found = settings.get(name, UNSAID.get(name))
        assert found == (pytest.approx(expected) if isinstance(expected, float) else expected), name
    assert set(settings) - set(before) <= {*NAMES, "config"}
    others = [name for name in before if name not in NAMES]
    assert [settings[name] for name in others] == [before[name] for name in others]
    with pytest.raises(ValueError, match="config 'H' is unknown; there are A, B, C, D, E, F and G"):
        ladder_settings("H", {})


def test_the_neighbours_differ_by_the_paper_s_steps_alone():
    """B to C and E to F are changes of the network."""
    settings = PRESETS["digits8"].network | PRESETS["digits8"].training
    settings_of = {architecture: {**ladder_settings(architecture, settings), "config": ""} for architecture in TABLE_1}
    assert settings_of["B"] == settings_of["C"]
    assert settings_of["E"] == settings_of["F"]
    assert settings_of["D"] | {"ref_batches": settings["ref_batches"]} == settings_of["E"]


def test_config_a_of_another_preset_takes_whole_batches_and_one_more_resolution(tmp_path):
    digits = open_dataset("digits")
    config = plan_run(digits, "digits", str(tmp_path), "digits8", None, {}, "A")
    assert config.network.config == "A"
    assert config.network.attn_resolutions == (8, 4)
    assert (config.batch_size, config.duration % 128) == (128, 0)
    assert config.ref_lr == pytest.approx(0.012 / 100)


def test_choices_override_the_config(tmp_path):
    chosen = {"ref_lr": 0.003, "weighting": "uncertainty", "batch_size": 32}
    config = plan_run(open_dataset("digits"), "digits", str(tmp_path), "digits8", None, chosen, "A")
    assert (config.ref_lr, config.weighting, config.batch_size) == (0.003, "uncertainty", 32)
