"""The machine that reads pickles as data gives back plain values, and names instead of what they name."""

import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest

from edm2.io.published.inert_pickle import Global, PickleFile, PickleRefused, read_pickle


def machine(data: bytes, makers: dict[str, Any] | None = None) -> Any:
    return read_pickle(PickleFile(io.BytesIO(data)), makers or {})


@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, 255, 65535, -1, 1 << 31, 1 << 70, -(1 << 70), 0.5, "", "text", "ä" * 300, "x" * 70_000,
     (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], list(range(3000)), {}, {"a": 1},
     {str(i): i for i in range(3000)}, {"a", "b"}, [[], [[]]], {"a": {"b": ({"c"}, [None])}}],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value)[:20],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [4, 5])
def test_plain_values_are_what_they_were(value, protocol):
    assert machine(pickle.dumps(value, protocol)) == value


def test_values_may_be_shared_and_contain_themselves():
    knot: dict[str, Any] = {"shared": [1]}
    knot["also"], knot["self"] = knot["shared"], knot
    read = machine(pickle.dumps(knot, 4))
    assert read["shared"] is read["also"]
    assert read["self"] is read


def test_names_stay_names():
    assert machine(pickle.dumps(OrderedDict, 4), {"collections.OrderedDict": None}) == Global("collections.OrderedDict")
    with pytest.raises(PickleRefused, match="no function"):
        machine(pickle.dumps(OrderedDict(), 4), {"collections.OrderedDict": None})


def test_the_reader_stops_behind_the_pickle():
    """One pickle can follow another."""
    file = io.BytesIO(pickle.dumps("first", 4) + pickle.dumps(["second"], 2))
    pickles = PickleFile(file)
    assert [read_pickle(pickles, {}) for _ in range(2)] == ["first", ["second"]]
    assert file.tell() == len(file.getvalue())
