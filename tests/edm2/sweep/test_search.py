"""The search finds the bottom of a valley with the evaluations that it was allowed."""

import math

import numpy as np
import pytest

from edm2.sweep.search import Axis, search

LENGTHS = Axis("length", (0.02, 0.07, 0.12, 0.17, 0.22), 0.001)
WEIGHTS = Axis("weight", (1.0, 1.5, 2.0, 2.5), 0.05)


class Recorder:
    """Counts evaluations, and keeps the batches in which they came."""

    def __init__(self, function):
        self.function = function
        self.batches = []

    def __call__(self, places):
        self.batches.append(list(places))
        return [self.function(*place) for place in places]

    @property
    def places(self):
        return [place for batch in self.batches for place in batch]


def lowest(known):
    return min(known, key=known.get)


def u_shape(sigma_rel, at=0.083):
    """As the paper's Figure 5: steep to the left, flat to the right; 2 at the bottom."""
    return 2 + 4 * math.log(sigma_rel / at) ** 2


@pytest.mark.parametrize("at", [0.02, 0.0334, 0.083, 0.15, 0.22])
def test_a_valley_is_found_to_the_step(at):
    """From a spacing of 0.05, six halvings of at most two evaluations each reach 0.001. The end of a slope stays there.

    Values are multiples of the step that can be written down, without 0.30000000000000004.
    """
    known = search([LENGTHS], Recorder(lambda x: u_shape(x, at)), budget=17)
    assert lowest(known)[0] == pytest.approx(at, abs=0.001)
    assert all(float(f"{x:.3f}") == x for (x,) in known)
    falling = search([LENGTHS], Recorder(lambda x: x), budget=20)
    assert lowest(falling) == min(falling) == (0.02,)


@pytest.mark.parametrize("seed", range(20))
def test_noise_misleads_by_no_more_than_itself(seed):
    """Two per cent of noise, as a Frechet distance of 50,000 images has: what is chosen is as low as noise can tell."""
    random = np.random.default_rng(seed)
    known = search([LENGTHS], lambda places: [u_shape(x) * (1 + 0.02 * random.normal()) for (x,) in places], budget=15)
    assert len(known) <= 15
    assert u_shape(*lowest(known)) < 2 * (1 + 3 * 0.02)


def test_two_axes_that_depend_on_each_other():
    """The best length shrinks as the weight grows (Figure 6 of the paper): a slanted valley."""
    function = Recorder(lambda x, w: 2 + 4 * math.log(x * w / 0.12) ** 2 + (w - 1.7) ** 2)
    known = search([LENGTHS, WEIGHTS], function, budget=60)
    length, weight = lowest(known)
    assert known[length, weight] < 2.01
    assert weight == pytest.approx(1.7, abs=0.1)
    assert length == pytest.approx(0.12 / 1.7, abs=0.005)


@pytest.mark.parametrize("budget", [8, 9, 10, 13, 30])
def test_the_budget_is_kept_and_nothing_is_evaluated_twice(budget):
    """Lists come first and together, as they share one pass over the snapshots; then both halves of a bracket."""
    function = Recorder(lambda x, w: u_shape(x) + (w - 1.7) ** 2)
    known = search([LENGTHS, WEIGHTS], function, budget)
    assert len(function.places) == len(set(function.places)) == len(known) <= budget
    assert list(known) == function.places
    lengths = Recorder(u_shape)
    search([LENGTHS], lengths, budget)
    assert lengths.batches[0] == [(value,) for value in LENGTHS.values]
    assert len(lengths.batches[1]) == 2
    with pytest.raises(ValueError, match="5 evaluations are too few: the lists alone take 8"):
        search([LENGTHS, WEIGHTS], function, budget=5)
    coarse = Axis("length", (0.1, 0.102), 0.001)
    assert set(search([coarse], Recorder(u_shape), budget=100)) == {(0.1,), (0.101,), (0.102,)}, "all steps"
