"""The Frechet distance is the published one, and what the mathematics say."""

import numpy as np
import pytest
from golden_data import arrays, present, table

from edm2.metrics import FeatureStatistics, feature_statistics, frechet_distance


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
    told = table(golden, "metrics/metrics.json")
    found = [{"id": name, **case} for name, case in told.items() if isinstance(case, dict)]
    return present(found, arrays(golden, "metrics/metrics.safetensors"))


def stored(golden, case: str, side: str) -> FeatureStatistics:
    numbers = arrays(golden, "metrics/metrics.safetensors")
    features, mu, sigma = (numbers[f"{case}/{side}/{name}"].numpy() for name in ("features", "mu", "sigma"))
    return FeatureStatistics(mu, sigma, len(features))


def test_distance_of_published_statistics(golden):
    for case in cases(golden):
        distance = frechet_distance(stored(golden, case["id"], "gen"), stored(golden, case["id"], "ref"))
        relative = RELATIVE.get(case["id"], 1e-9)
        absolute = 1e-6 if case["id"] == "identical" else 0
        assert distance == pytest.approx(case["frechet_distance"], rel=relative, abs=absolute), case["id"]


def test_statistics_of_published_features(golden):
    numbers = arrays(golden, "metrics/metrics.safetensors")
    for case in cases(golden):
        for side in ("gen", "ref"):
            ours = feature_statistics(numbers[f"{case['id']}/{side}/features"].numpy())
            theirs = stored(golden, case["id"], side)
            assert ours.num_images == case[f"n_{side}"]
            # float64, accumulated in another order: the published numbers are off by the same from numpy's own
            np.testing.assert_allclose(ours.mu, theirs.mu, rtol=0, atol=1e-13)
            np.testing.assert_allclose(ours.sigma, theirs.sigma, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------ mathematics


def test_distance_of_gaussians_along_the_axes():
    """Diagonal covariances: |mu|² + sum of (root a - root b)²."""
    a = FeatureStatistics(np.array([1.0, 2.0]), np.diag([4.0, 9.0]), 10)
    b = FeatureStatistics(np.array([0.0, 0.0]), np.diag([1.0, 1.0]), 10)
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 4, rel=1e-12)


def test_distance_is_symmetric_and_zero_to_itself(rng):
    a, b = feature_statistics(cloud(rng, 300, 20)), feature_statistics(cloud(rng, 200, 20, 2, 1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * np.trace(a.sigma))
    assert frechet_distance(a, b) > 1


def test_distance_is_that_of_the_clouds_not_of_their_coordinates(rng):
    """Rotating and moving both changes nothing; moving one adds the square of the way."""
    x, y = cloud(rng, 300, 12), cloud(rng, 300, 12, 1.5)
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    before = frechet_distance(feature_statistics(x), feature_statistics(y))
    turned = frechet_distance(feature_statistics(x @ rotation + 5), feature_statistics(y @ rotation + 5))
    assert turned == pytest.approx(before, rel=1e-9)
    step = rng.normal(size=12)
    x, y = x - x.mean(0), y - y.mean(0)
    still = frechet_distance(feature_statistics(x), feature_statistics(y))
    moved = frechet_distance(feature_statistics(x + step), feature_statistics(y))
    assert moved - still == pytest.approx(step @ step, rel=1e-9)


def test_distance_scales_with_the_square(rng):
    x, y = cloud(rng, 100, 8), cloud(rng, 100, 8, 2)
    small, large = (frechet_distance(feature_statistics(k * x), feature_statistics(k * y)) for k in (1, 10))
    assert large == pytest.approx(100 * small, rel=1e-9)


def test_a_constant_feature_and_a_single_one_are_fine(rng):
    """Singular covariances; features of one dimension."""
    x = np.concatenate([cloud(rng, 50, 3), np.zeros((50, 1))], axis=1)
    assert frechet_distance(feature_statistics(x), feature_statistics(x + 1)) == pytest.approx(4, rel=1e-6)
    line = rng.normal(size=(50, 1))
    assert frechet_distance(feature_statistics(line), feature_statistics(line + 3)) == pytest.approx(9, rel=1e-9)


@pytest.mark.parametrize(
    "features", [np.zeros((1, 4)), np.zeros((0, 4)), np.zeros(4), np.full((3, 4), np.nan)], ids=str
)
def test_features_without_a_covariance_are_refused(features):
    with pytest.raises(ValueError) as error:
        feature_statistics(features)
    assert "\n" not in str(error.value)


def test_statistics_of_different_features_are_refused(rng):
    with pytest.raises(ValueError, match="3 and 4"):
        frechet_distance(feature_statistics(cloud(rng, 9, 3)), feature_statistics(cloud(rng, 9, 4)))
