"""Numbers as people read them."""

import pytest

from edm2.training.run.speed import with_unit


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_520_000_000, "1.52 GB"), (3e23, "300 ZB")]
)
def test_numbers_of_any_size_are_readable(value, text):
    assert with_unit(value, "B") == text
