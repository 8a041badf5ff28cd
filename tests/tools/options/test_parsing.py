"""Values of options mean what they mean to the paper's tools; anything else is refused."""

from pathlib import Path

import click
import pytest
from golden_data import table

from edm2.io.model import ASSETS
from edm2.tools.options.parsing import (
    IMAGES,
    PNG_FILE,
    parse_bytes,
    parse_device,
    parse_group,
    parse_image_count,
    parse_initial_network,
    parse_interval,
    parse_number,
    parse_parameter_count,
    parse_resolution,
    parse_seeds,
    parse_sigma_rels,
    parse_time,
    parse_times,
    parse_weights,
)


def test_texts_agree_with_the_published_tools(golden: Path):
    """Tolerance 1e-12: a few roundings of numbers below one."""
    cases = table(golden, "tables/parsing.json")
    assert all(cases[name] for name in ("std_lists", "seed_lists", "nimg_sizes"))
    for text, expected in cases["std_lists"].items():
        assert parse_sigma_rels(text) == pytest.approx(sorted(set(expected)), abs=1e-12, rel=0), text
    for text, expected in cases["seed_lists"].items():
        assert parse_seeds(text) == expected, text
    for text, expected in cases["nimg_sizes"].items():
        assert parse_image_count(text) == expected, text


MEANINGS = {
    parse_bytes: {"512M": 512 << 20, "4G": 4 << 30, "1000": 1000, "2GiB": 2 << 30, "1KB": 1024},
    parse_group: {"a=b=0.1": ("a=b", 0.1)},
    parse_interval: {"0.19, 1.61": (0.19, 1.61)},
    parse_number: {"0.01": 0.01, "1e-2": 0.01, "-0.4": -0.4, "7": 7.0},
    parse_parameter_count: {"125M": 125_000_000, "1.5B": 1_500_000_000, "722443": 722_443},
    parse_seeds: {"7, 0-2,100,1": [7, 0, 1, 2, 100, 1]},  # in the order in which they are asked for
    parse_sigma_rels: {  # ascending, each once; an ellipsis continues the two numbers before it
        **{text: [0.05, 0.1] for text in ("0.1, 0.05", "0.05,0.1,0.1", " 0.10 ,0.050")},
        "0.05,0.10,...,0.25": [0.05, 0.1, 0.15, 0.2, 0.25],
        "0.01,0.02,...,0.05,0.10,...,0.20": [0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.15, 0.2],
    },
    parse_time: {"90s": 90, "30m": 1800, "11.5h": 41_400, "2 d": 172_800},
    parse_times: {"2Ki,4Ki,...,8Ki": [2048, 4096, 6144, 8192]},
    parse_weights: {"1,1.2,...,2": [1, 1.2, 1.4, 1.6, 1.8, 2]},
}


@pytest.mark.parametrize("parse", MEANINGS, ids=lambda parse: parse.__name__)
def test_meanings_of_texts(parse):
    assert {text: parse(text) for text in MEANINGS[parse]} == MEANINGS[parse]


REFUSED = [
    (parse_bytes, "write 512M or 4G", ["0", "4X"]),
    (parse_device, "no device", ["foo", "", "cuda:99", "meta", "cpu:x"]),
    (parse_group, r"write PATTERN=LENGTH|one length|is no number", ["a", "a=0.1,0.2"]),
    (parse_image_count, "128Ki", ["", "Ki", "-1", "1.5Mi", "1e6", "128k", "128ki", "128 Ki", "1,000", "0x10"]),
    (parse_interval, r"LOW,HIGH|finite", ["", "1", "2,1", "1,1", "-1,1", "1,nan", "1,2,3"]),
    (parse_number, "finite", ["nan", "inf", "-inf", "1e999", "", "a", "1,5"]),  # NaN as a learning rate shows late
    (parse_parameter_count, "write 125M", ["M"]),
    (parse_seeds, "0-63", ["", "a", "-1", "1-", "1..3", "1,,2", "1.0"]),
    (parse_resolution, "up to 16384", ["0", "64x", "100000", "64x100000"]),
    (parse_seeds, "write 3-9", ["9-3"]),
    (parse_seeds, "more than 10,000,000 seeds", ["0-99999999999", "7,0-10000000"]),
    (parse_sigma_rels, "more than 10,000", ["0.1,0.1000000001,...,0.2"]),
    (parse_weights, "more than 10,000", ["0,1e-300,...,1e308"]),
    (parse_sigma_rels, "sigma_rel", ["0", "0.2887", "-0.1", "nan", "inf", "1", "0.1,0.3", "0.1,0.2,...,inf"]),
    (parse_sigma_rels, "ascending", ["...", "0.1,...,0.2", "...,0.1,0.2", "0.1,0.2,...", "0.2,0.1,...,0.05"]),
    (parse_sigma_rels, "ascending", ["0.1,0.1,...,0.2", "0.1,0.2,...,0.15"]),
    (parse_sigma_rels, r"0\.05,0\.10,\.\.\.,0\.25", ["", "0.1,", "a", "0.1;0.2", "0.1,..,0.2"]),
    (parse_time, "90s, 30m", ["", "90", "h", "0s", "-1h", "1e3s", "12:00:00", "nanh", "9999999999d"]),
    (parse_times, "128Ki", ["2e3"]),
]


@pytest.mark.parametrize(("parse", "remedy", "texts"), REFUSED)
def test_other_texts_are_refused_with_an_example(parse, remedy, texts):
    for text in texts:
        with pytest.raises(ValueError, match=remedy):
            parse(text)


def test_errors_of_parsing_are_errors_of_usage():
    """click adds the option's name and its own exit code."""
    option = click.Option(["--at"], type=IMAGES)
    with pytest.raises(click.BadParameter, match="'many' is no image count; write 1000, 128Ki") as error:
        option.type_cast_value(click.Context(click.Command("x")), "many")
    assert error.value.param is option
    assert error.value.exit_code == 2


def test_training_starts_from_a_file_or_an_included_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert parse_initial_network("digits8") == str(ASSETS / "digits8.safetensors")
    for text in ("digits9", "./digits8/../digits8", "../digits8", "user/digits8"):
        with pytest.raises(
            ValueError, match=r"no such file, and not the name of an included network \(digits8, digits8-map\)"
        ):
            parse_initial_network(text)
    Path("digits8").touch()
    assert parse_initial_network("digits8") == "digits8"


def test_names_of_pictures_end_in_png():
    assert PNG_FILE.convert("of/A.PNG", None, None) == Path("of/A.PNG")
    for text, remedy in {"of/a.jpg": "of/a.png", "a": "a.png"}.items():
        with pytest.raises(click.BadParameter, match=f"write {remedy}$"):
            PNG_FILE.convert(text, None, None)
