"""Values of options mean what they mean to the paper's tools; anything else is refused."""

import math
from pathlib import Path

import click
import pytest
from golden_data import table

from edm2.io.model import ASSETS
from edm2.tools.options.parsing import (
    IMAGES,
    PNG_FILE,
    parse_device,
    parse_image_count,
    parse_initial_network,
    parse_interval,
    parse_number,
    parse_seeds,
    parse_sigma_rels,
    parse_time,
)


def test_ema_lengths_agree_with_the_published_tools(golden: Path):
    """Tolerance 1e-12: a few roundings of numbers below one."""
    cases = table(golden, "tables/parsing.json")["std_lists"]
    assert cases
    for text, expected in cases.items():
        assert parse_sigma_rels(text) == pytest.approx(sorted(set(expected)), abs=1e-12, rel=0), text


def test_seeds_agree_with_the_published_tools(golden: Path):
    cases = table(golden, "tables/parsing.json")["seed_lists"]
    assert cases
    for text, expected in cases.items():
        assert parse_seeds(text) == expected, text


def test_image_counts_agree_with_the_published_tools(golden: Path):
    cases = table(golden, "tables/parsing.json")["nimg_sizes"]
    assert cases
    for text, expected in cases.items():
        assert parse_image_count(text) == expected, text


@pytest.mark.parametrize("text", ["", "Ki", "-1", "1.5Mi", "1e6", "128k", "128ki", "128 Ki", "1,000", "0x10"])
def test_bad_image_counts_are_refused_with_an_example(text: str):
    with pytest.raises(ValueError, match="128Ki") as error:
        parse_image_count(text)
    assert repr(text) in str(error.value)


def test_an_ellipsis_continues_the_two_numbers_before_it():
    assert parse_sigma_rels("0.05,0.10,...,0.25") == pytest.approx([0.05, 0.10, 0.15, 0.20, 0.25], abs=1e-12)


def test_two_ellipses():
    expected = [0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.15, 0.2]
    assert parse_sigma_rels("0.01,0.02,...,0.05,0.10,...,0.20") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("text", ["0.1, 0.05", "0.05,0.1,0.1", " 0.10 ,0.050"])
def test_lengths_are_ascending_and_each_there_once(text: str):
    assert parse_sigma_rels(text) == [0.05, 0.1]


@pytest.mark.parametrize("text", ["0", "0.2887", "-0.1", "nan", "inf", "1", "0.1,0.3", "0.1,0.2,...,inf"])
def test_lengths_that_no_power_function_has_are_refused(text: str):
    with pytest.raises(ValueError, match="sigma_rel"):
        parse_sigma_rels(text)


@pytest.mark.parametrize(
    "text",
    ["...", "0.1,...,0.2", "...,0.1,0.2", "0.1,0.2,...", "0.2,0.1,...,0.05", "0.1,0.1,...,0.2", "0.1,0.2,...,0.15"],
)
def test_an_ellipsis_needs_three_ascending_neighbours(text: str):
    with pytest.raises(ValueError, match="ascending"):
        parse_sigma_rels(text)


@pytest.mark.parametrize("text", ["", "0.1,", "a", "0.1;0.2", "0.1,..,0.2"])
def test_lengths_that_are_no_numbers_are_refused_with_an_example(text: str):
    with pytest.raises(ValueError, match=r"0\.05,0\.10,\.\.\.,0\.25"):
        parse_sigma_rels(text)


def test_seeds_keep_the_order_in_which_they_are_asked_for():
    assert parse_seeds("7, 0-2,100,1") == [7, 0, 1, 2, 100, 1]


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "1..3", "1,,2", "1.0"])
def test_bad_seeds_are_refused_with_an_example(text: str):
    with pytest.raises(ValueError, match="0-63"):
        parse_seeds(text)


def test_a_range_of_seeds_upside_down_is_refused_with_the_right_one():
    with pytest.raises(ValueError, match="write 3-9"):
        parse_seeds("9-3")


@pytest.mark.parametrize(("text", "value"), [("0.01", 0.01), ("1e-2", 0.01), ("-0.4", -0.4), ("7", 7.0)])
def test_numbers(text: str, value: float):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "", "a", "1,5"])
def test_numbers_are_finite(text: str):
    """A learning rate of NaN would train for hours before it shows."""
    with pytest.raises(ValueError, match="finite"):
        parse_number(text)
    assert not math.isfinite(float("1e999"))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("11.5h", 41_400), ("2 d", 172_800)])
def test_times(text: str, seconds: float):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "h", "0s", "-1h", "1e3s", "12:00:00", "nanh", "9999999999d"])
def test_times_need_a_unit(text: str):
    with pytest.raises(ValueError, match="90s, 30m"):
        parse_time(text)


@pytest.mark.parametrize("text", ["foo", "", "cuda:99", "meta", "cpu:x"])
def test_devices_that_are_not_there_are_refused(text: str):
    with pytest.raises(ValueError, match="no device"):
        parse_device(text)


def test_errors_of_parsing_are_errors_of_usage():
    """click adds the option's name and its own exit code."""
    option = click.Option(["--at"], type=IMAGES)
    with pytest.raises(click.BadParameter, match="128Ki") as error:
        option.type_cast_value(click.Context(click.Command("x")), "many")
    assert error.value.param is option
    assert error.value.exit_code == 2


def test_training_starts_from_a_file_or_an_included_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert parse_initial_network("digits8") == str(ASSETS / "digits8.safetensors")
    for text in ("digits9", "./digits8/../digits8", "../digits8", "user/digits8"):
        with pytest.raises(ValueError, match=r"no such file, and not the name of an included network \(digits8\)"):
            parse_initial_network(text)
    Path("digits8").touch()
    assert parse_initial_network("digits8") == "digits8"


def test_names_of_pictures_end_in_png():
    assert PNG_FILE.convert("of/A.PNG", None, None) == Path("of/A.PNG")
    for text, remedy in {"of/a.jpg": "of/a.png", "a": "a.png"}.items():
        with pytest.raises(click.BadParameter, match=f"write {remedy}$"):
            PNG_FILE.convert(text, None, None)


@pytest.mark.parametrize("text", ["", "1", "2,1", "1,1", "-1,1", "1,nan", "1,2,3"])
def test_intervals_ascend(text: str):
    assert parse_interval("0.19, 1.61") == (0.19, 1.61)
    with pytest.raises(ValueError, match=r"LOW,HIGH|finite"):
        parse_interval(text)
