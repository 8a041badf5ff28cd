"""JSON and texts from anybody: parsed or refused, and shown so that no terminal obeys them."""

import json

import pytest

from edm2.post_hoc_ema.files import MAX_DEPTH, parse_json, plain_line


def test_json_is_read_as_json_and_what_is_none_a_value_error():
    for value in (None, 3, "x", [], {}, {"a": [1, {"b": None}]}, [[]] * 10_000):
        assert parse_json(json.dumps(value)) == parse_json(json.dumps(value).encode()) == value
    for text in ("", "{", "nan", b"\xff\xff", "1" * 10_000, '"'):
        with pytest.raises(ValueError):
            parse_json(text)


@pytest.mark.parametrize("depth", [MAX_DEPTH, 500, 100_000])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_what_is_too_deep_is_a_value_error(depth, start, end):
    """Not a RecursionError, here or wherever somebody walks through it. As deep as allowed is fine."""
    parse_json("[" * (MAX_DEPTH - 1) + "0" + "]" * (MAX_DEPTH - 1))
    with pytest.raises(ValueError, match="inside each other"):
        parse_json(start * depth + "0" + end * depth)


def test_a_line_stays_a_line_and_a_long_one_keeps_its_start_and_its_end():
    assert plain_line("a b\u00e9") == "a b\u00e9"
    assert plain_line("a\nb\x1b[2J\u202e\ud800") == r"a\nb\x1b[2J\u202e\ud800"
    assert plain_line(plain_line("a\nb")) == plain_line("a\nb")
    line = plain_line("start" + "x" * 100_000 + "end")
    assert len(line) == 1000
    assert line.startswith("start")
    assert line.endswith("end")
