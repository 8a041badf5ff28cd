"""The deviation told is that of Frechet distances of freshly drawn images."""

import numpy as np
import pytest

from edm2.metrics import FeatureStatistics, feature_statistics, frechet_distance
from edm2.metrics.frechet import _square_root as square_root
from edm2.metrics.frechet import _variable_part, frechet_deviation


def drawn(random: np.random.Generator, count: int, size: int, shift: float = 0.3) -> np.ndarray:
    return random.normal(size=(count, size)) * np.linspace(0.5, 1.5, size) + shift


@pytest.fixture(scope="module", params=[(400, 6), (40, 60)], ids=["many images", "more features than images"])
def shape(request):
    return request.param


@pytest.fixture(scope="module")
def reference(shape) -> FeatureStatistics:
    return feature_statistics(np.random.default_rng(99).normal(size=(5000, shape[1])))


def test_it_is_the_spread_over_fresh_images(shape, reference):
    """Forty resamples know a deviation to 11 %, two hundred fresh sets to 5 %; a factor of 1.5 is three of these."""
    random = np.random.default_rng(0)
    fresh = [frechet_distance(feature_statistics(drawn(random, *shape)), reference) for _ in range(200)]
    told = np.mean([frechet_deviation(drawn(random, *shape), reference) for _ in range(5)])
    assert 1 / 1.5 < told / np.std(fresh) < 1.5


def test_the_part_that_varies_is_of_the_distance(shape, reference):
    """Up to what no sample changes; roots of eigenvalues that are zero but for rounding err by 1e-7 each."""
    features = drawn(np.random.default_rng(1), *shape)
    deviations = features - reference.mu
    fast = _variable_part(deviations, deviations @ square_root(reference.sigma)) + np.trace(reference.sigma)
    assert fast == pytest.approx(frechet_distance(feature_statistics(features), reference), abs=1e-5)


def test_the_same_features_have_the_same_deviation(shape, reference):
    features = drawn(np.random.default_rng(2), *shape)
    assert frechet_deviation(features, reference) == frechet_deviation(features, reference)


def test_what_is_not_cheap_is_left_out():
    many = np.zeros((60_000, 400), dtype=np.float32)
    statistics = FeatureStatistics(np.zeros(400), np.eye(400), 60_000)
    assert frechet_deviation(many, statistics) is None
    assert frechet_deviation(many[:3], statistics) is None
