"""The Frechet distance is the published one, and what the mathematics say; its deviation is that of fresh images."""

import time

import numpy as np
import pytest
from golden_data import arrays, present, table

from edm2.metrics import FeatureStatistics, feature_statistics, frechet_distance
from edm2.metrics.frechet import _square_root as square_root, _variable_part, frechet_deviation


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def cloud(rng: np.random.Generator, n: int, d: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Correlated features [n, d]."""
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * scale + shift


# ------------------------------------------------------------------------------------------------ golden/metrics

RELATIVE = {"rank_deficient": 1e-6}
"""Roots of eigenvalues near zero turn a rounding of 1e-16 into 1e-8; elsewhere 1e-9 (golden README)."""


def cases(golden) -> list[dict]:
    cases_table = table(golden, "metrics/metrics.json")
    found = [{"id": name, **case} for name, case in cases_table.items() if isinstance(case, dict)]
    return present(found, arrays(golden, "metrics/metrics.safetensors"))


def stored(golden, case: str, side: str) -> FeatureStatistics:
    numbers = arrays(golden, "metrics/metrics.safetensors")
    features, mu, sigma = (numbers[f"{case}/{side}/{name}"].numpy() for name in ("features", "mu", "sigma"))
    return FeatureStatistics(mu, sigma, len(features))


def test_statistics_and_distances_are_the_published_ones(golden):
    numbers = arrays(golden, "metrics/metrics.safetensors")
    for case in cases(golden):
        name = case["id"]
        distance = frechet_distance(stored(golden, name, "gen"), stored(golden, name, "ref"))
        absolute = 1e-6 if name == "identical" else 0
        assert distance == pytest.approx(case["frechet_distance"], rel=RELATIVE.get(name, 1e-9), abs=absolute), name
        for side in ("gen", "ref"):
            ours = feature_statistics(numbers[f"{name}/{side}/features"].numpy())
            theirs = stored(golden, name, side)
            assert ours.num_images == case[f"n_{side}"]
            # float64, accumulated in another order: the published numbers are off by the same from numpy's own
            np.testing.assert_allclose(ours.mu, theirs.mu, rtol=0, atol=1e-13)
            np.testing.assert_allclose(ours.sigma, theirs.sigma, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------ mathematics


def test_distance_in_closed_form_where_there_is_one():
    """Diagonal covariances: |mu|² + sum of (root a - root b)². To a set that never varies, tr S is left of these."""
    a = FeatureStatistics(np.array([1.0, 2.0]), np.diag([4.0, 9.0]), 10)
    b = FeatureStatistics(np.array([0.0, 0.0]), np.diag([1.0, 1.0]), 10)
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 4, rel=1e-12)
    still, moving = FeatureStatistics(np.zeros(3), np.zeros((3, 3)), 9), FeatureStatistics(np.zeros(3), np.eye(3), 9)
    assert frechet_distance(still, moving) == frechet_distance(moving, still) == 3
    assert frechet_distance(still, still) == 0


def test_distance_is_that_of_the_clouds_not_of_their_coordinates(rng):
    """Rotating and moving both changes nothing; moving one adds the square of the way."""
    x, y = cloud(rng, 300, 12), cloud(rng, 200, 12, 1.5)
    a, b = feature_statistics(x), feature_statistics(y)
    before = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(before, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * np.trace(a.sigma))
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    turned = frechet_distance(feature_statistics(x @ rotation + 5), feature_statistics(y @ rotation + 5))
    assert turned == pytest.approx(before, rel=1e-9)
    step = rng.normal(size=12)
    x, y = x - x.mean(0), y - y.mean(0)
    still = frechet_distance(feature_statistics(x), feature_statistics(y))
    moved = frechet_distance(feature_statistics(x + step), feature_statistics(y))
    assert moved - still == pytest.approx(step @ step, rel=1e-9)


@pytest.mark.parametrize("features", [np.zeros((1, 4)), np.zeros(4), np.full((3, 4), np.nan)], ids=str)
def test_features_without_a_covariance_are_refused(features):
    with pytest.raises(ValueError) as error:
        feature_statistics(features)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="3 and 4"):
        frechet_distance(*(feature_statistics(np.eye(size)) for size in (3, 4)))


def test_the_distance_of_singular_covariances(rng):
    """Fewer images than features: in the plane that both sets span, and moved out of it. A constant feature, or one."""
    basis = np.linalg.qr(rng.normal(size=(40, 5)))[0].T
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 5)) * 2
    flat = frechet_distance(feature_statistics(x), feature_statistics(y))
    embedded = frechet_distance(feature_statistics(x @ basis), feature_statistics(y @ basis))
    assert embedded == pytest.approx(flat, rel=1e-6)  # roots of eigenvalues that are 0 but for rounding
    constant = np.concatenate([cloud(rng, 50, 3), np.zeros((50, 1))], axis=1)
    assert frechet_distance(feature_statistics(constant), feature_statistics(constant + 1)) == pytest.approx(
        4, rel=1e-6
    )
    line = rng.normal(size=(50, 1))
    assert frechet_distance(feature_statistics(line), feature_statistics(line + 3)) == pytest.approx(9, rel=1e-9)


def test_inception_sized_statistics_take_seconds(rng):
    """2048 features under 3 s on two cores, which is 6 s of processor time; measured: 1.7 s by one thread."""
    roots = [rng.normal(size=(2048, 2048)) / 45 for _ in range(2)]
    a, b = (FeatureStatistics(np.zeros(2048), root @ root.T, 50_000) for root in roots)
    start = time.process_time()
    assert frechet_distance(a, b) > 1
    assert time.process_time() - start < 6


# ------------------------------------------------------------------------------------------------ deviation


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
    estimated = np.mean([frechet_deviation(drawn(random, *shape), reference) for _ in range(5)])
    assert 1 / 1.5 < estimated / np.std(fresh) < 1.5
    features = drawn(random, *shape)
    assert frechet_deviation(features, reference) == frechet_deviation(features, reference)


def test_the_part_that_varies_is_of_the_distance(shape, reference):
    """Up to what no sample changes; roots of eigenvalues that are zero but for rounding err by 1e-7 each."""
    features = drawn(np.random.default_rng(1), *shape)
    deviations = features - reference.mu
    fast = _variable_part(deviations, deviations @ square_root(reference.sigma)) + np.trace(reference.sigma)
    assert fast == pytest.approx(frechet_distance(feature_statistics(features), reference), abs=1e-5)


def test_what_is_not_cheap_is_left_out():
    many = np.zeros((60_000, 400), dtype=np.float32)
    statistics = FeatureStatistics(np.zeros(400), np.eye(400), 60_000)
    assert frechet_deviation(many, statistics) is None
    assert frechet_deviation(many[:3], statistics) is None
