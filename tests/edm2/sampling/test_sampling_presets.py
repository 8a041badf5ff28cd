"""Presets are the published settings, and their files are found, or missed by name."""

import re
from itertools import product
from typing import Any

import pytest
from golden_data import table

import edm2
from edm2.sampling.guidance import interval_of_steps
from edm2.sampling.presets import FAMILIES, GENERATION_PRESETS, PublishedNetwork, describe_presets

INTERVALS = {name: preset for name, preset in GENERATION_PRESETS.items() if preset.interval_steps is not None}

METRICS = {"fid": "fid", "dino": "fd_dinov2"}
"""Metrics by the end of a preset's name."""


def as_published(name: str) -> dict[str, Any]:
    """A preset of ours in the form of the golden table."""
    preset = GENERATION_PRESETS[name]
    entry = {"net": f"{preset.network.stem}.pkl", "gnet": None, "guidance": preset.guidance}
    entry |= {"published": {METRICS[name.rpartition("-")[2]]: preset.published}}
    for role, network in (("net", preset.network), ("gnet", preset.guide)):
        if network is not None:
            entry |= {f"{role}_model": network.model, f"{role}_kimg": network.kimg}
            entry |= {f"{role}_ema_std": network.sigma_rel, role: f"{network.stem}.pkl"}
    return entry


def test_presets_equal_the_published_ones_field_by_field(golden):
    published = table(golden, "tables/generation_presets.json")
    assert published
    for name, entry in published.items():
        assert as_published(name) == entry, name
    assert set(GENERATION_PRESETS) - set(published) == set(INTERVALS)  # which are from another paper


# What arXiv 2404.07724, Table 1, prints: interval, weight, score.
PRINTED = {
    "edm2-img512-s-interval-fid": ((0.28, 2.90), 2.1, 1.68),
    "edm2-img512-xxl-interval-fid": ((0.19, 1.61), 2.0, 1.40),
    "edm2-img512-s-interval-dino": ((0.60, 5.00), 3.2, 46.25),
    "edm2-img512-xxl-interval-dino": ((0.60, 5.00), 2.9, 29.16),
}


@pytest.mark.parametrize("name", INTERVALS)
def test_intervals_end_where_the_paper_prints(name):
    """Equal to two decimals, with the networks of the guided presets without interval."""
    preset, (printed, weight, score) = INTERVALS[name], PRINTED[name]
    assert tuple(round(level, 2) for level in interval_of_steps(*preset.interval_steps)) == printed
    assert (preset.guidance, preset.published) == (weight, score)
    everywhere = GENERATION_PRESETS[name.replace("interval", "guid")]
    assert (preset.network, preset.guide) == (everywhere.network, everywhere.guide)


def test_printed_digits_would_not_do():
    """Steps are stored because level 15 is 2.9015 and level 22 is 0.2830, so (0.28, 2.90] moves both ends by a step."""
    guided = [i for i, sigma in enumerate(edm2.sigma_steps(32).tolist()) if 0.28 < sigma <= 2.90]
    assert guided == list(range(16, 23))
    assert INTERVALS["edm2-img512-s-interval-fid"].interval_steps == (15, 22)
    first, end = INTERVALS["edm2-img512-xxl-interval-fid"].interval_steps
    assert end - first == 6  # of 32, as the paper says


# ------------------------------------------------------------------------------------------------ names and files


def expanded(pattern: str) -> list[str]:
    """Every word that a shell makes of braces."""
    parts = re.split(r"\{(.*?)\}", pattern)
    return ["".join(words) for words in product(*(part.split(",") for part in parts))]


def test_lists_name_every_preset_once_and_the_long_one_says_what_to_download_and_to_expect():
    names = [name for line in FAMILIES.splitlines() for name in expanded(line.split()[0])]
    assert sorted(names) == sorted(GENERATION_PRESETS)
    lines = describe_presets()
    for name, preset in GENERATION_PRESETS.items():
        [line] = [line for line in lines if line.startswith(f"{name} ")]
        assert preset.network.stem in line
        assert line.endswith(f"{preset.published:.2f}")
        if preset.guide is not None:
            assert f" {preset.guide.stem} " in line
            assert f" {preset.guidance:.2f} " in line


NETWORK = PublishedNetwork("edm2-img512-xxl", 939524, 0.07)


def test_files_as_downloaded_or_converted_are_found_and_a_missing_one_named_with_the_remedy(tmp_path):
    """A converted file loads faster, so it goes first."""
    (tmp_path / "edm2-img512-xxl-0939524-0.075.pkl").touch()
    with pytest.raises(FileNotFoundError, match=r"^[^\n]+$") as error:
        NETWORK.find(tmp_path)
    for mention in (str(tmp_path), "edm2-img512-xxl-0939524-0.070.pkl", "edm2 convert", "--networks"):
        assert mention in str(error.value)
    published = tmp_path / "edm2-img512-xxl-0939524-0.070.pkl"
    for file in (published, published.with_suffix(".safetensors")):
        file.touch()
        assert NETWORK.find(tmp_path) == file
