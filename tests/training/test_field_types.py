"""Fields hold what their annotations say, or are named."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from edm2.networks import NetworkConfig
from edm2.training.config import TrainingConfig
from edm2.training.field_types import mistyped_fields


@dataclass(frozen=True)
class Inner:
    side: int = 1


@dataclass(frozen=True)
class Record:
    count: int = 1
    rate: float = 0.5
    flag: bool = True
    name: str | None = None
    size: int | tuple[int, int] = 8
    lengths: tuple[float, ...] = (0.1, 0.2)
    inner: Inner = Inner()
    anything: Any = None


def test_what_fits_is_fine():
    assert mistyped_fields(Record()) == []
    assert mistyped_fields(Record(rate=3, name="x", size=(1, 2), lengths=(), anything=[object()])) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("count", value) for value in ("1", 1.0, True, None, [1], 1 << 63, -(1 << 63))],
        *[("rate", value) for value in ("1", math.nan, math.inf, True, None, 10**400)],
        *[("flag", value) for value in (1, "true", None)],
        *[("name", value) for value in (3, ["x"])],
        *[("size", value) for value in ((1,), (1, 2, 3), (1.0, 2), [1, 2], "88", None)],
        *[("lengths", value) for value in ((0.1, "x"), [0.1], 0.1, (math.nan,))],
        *[("inner", value) for value in (Inner(side="x"), {}, None)],
    ],
)
def test_what_does_not_fit_is_named(name: str, value: Any):
    assert mistyped_fields(replace(Record(), **{name: value})) == [name]


def test_a_run_as_it_is_stored_fits():
    """Every field of a real configuration has an annotation that is understood, after JSON too."""
    config = TrainingConfig(data="digits", out="run", network=NetworkConfig(8, 1, 10))
    assert mistyped_fields(config) == []
    assert mistyped_fields(TrainingConfig.from_json(config.to_json())) == []
