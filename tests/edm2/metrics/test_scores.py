"""Metrics of features: what the mathematics say of them, and of the scores of a set of samples."""

import tracemalloc

import numpy as np
import pytest
import torch

from edm2.metrics import distances as distances_module, feature_statistics, frechet_distance, load_detector
from edm2.metrics.distances import distance_blocks, nearest, nearest_other
from edm2.metrics.inception_score import inception_score
from edm2.metrics.kernel import kernel_distance
from edm2.metrics.neighbours import find_neighbours
from edm2.metrics.precision_recall import precision_recall
from edm2.metrics.reference import write_reference
from edm2.metrics.scores import metrics_from, score


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------------------------ kernel


def test_the_kernel_distance_of_one_distribution_is_around_zero(rng):
    """Unbiased: within four standard errors of the mean over independent sets."""
    found = [kernel_distance(rng.normal(size=(100, 8)), rng.normal(size=(100, 8)), 5, 50)[0] for _ in range(40)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(40)
    assert min(found) < 0


def test_the_kernel_distance_by_its_definition(rng):
    """All images of both sets in one subset, term by term."""
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)) + 1

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs) / 30
    across = sum(k(a, b) for a in x for b in y) / 36
    mean, error = kernel_distance(x, y, subsets=3)
    assert mean == pytest.approx(within - 2 * across, rel=1e-12)
    assert error == pytest.approx(0, abs=1e-12)


def test_the_kernel_distance_grows_and_repeats(rng):
    x = rng.normal(size=(200, 4))
    distances = [kernel_distance(x, rng.normal(size=(150, 4)) + shift, 10, 80)[0] for shift in (0, 1, 2)]
    assert distances == sorted(distances)
    assert kernel_distance(x, x + 1, 10, 80) == kernel_distance(x, x + 1, 10, 80)
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(x[:1], x)
    with pytest.raises(ValueError, match="cannot be compared"):
        kernel_distance(x, x[:, :3])


# ------------------------------------------------------------------------------------------------ precision, recall


def test_lost_modes_cost_recall_and_strays_cost_precision(rng):
    """Two clouds far apart: half of what is real is not covered, then half of the samples is not real.

    On a line: 0, 1, 3 with radii 3, 2, 3 for k = 2; a point at 6 is within reach of the last, one at 6.1 is not.
    """
    one, other = rng.normal(size=(50, 3)), rng.normal(size=(50, 3)) + 50
    both, again = np.concatenate([one, other]), rng.normal(size=(50, 3))
    precision, recall = precision_recall(again, both)
    assert precision > 0.8
    assert recall <= 0.5
    assert precision_recall(both, again) == (recall, precision)
    assert precision_recall(both, both) == (1, 1)
    assert precision_recall(both + 100, both) == (0, 0)
    real, samples = np.array([[0.0], [1.0], [3.0]]), np.array([[6.0], [6.1], [-3.0], [-3.1]])
    assert precision_recall(samples, real, k=2)[0] == 0.5
    with pytest.raises(ValueError, match="at least 4"):
        precision_recall(real, samples)


# ------------------------------------------------------------------------------------------------ Inception score


def test_the_inception_score_of_extremes():
    """Sure and diverse: number of classes. All alike, or never sure: 1."""
    assert inception_score(np.tile(np.eye(5), (20, 1)))[0] == pytest.approx(5)
    assert inception_score(np.tile(np.eye(5)[:1], (20, 1)))[0] == pytest.approx(1)
    assert inception_score(np.full((20, 5), 0.2))[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="not 9"):
        inception_score(np.full((9, 5), 0.2))


# ------------------------------------------------------------------------------------------------ neighbours


@pytest.mark.parametrize("block", [40, 300, 4000, distances_module.BLOCK])
def test_neighbours_are_those_of_a_search_one_by_one(rng, monkeypatch, block):
    """Whatever fits into a block: a few rows, many, or all."""
    monkeypatch.setattr(distances_module, "BLOCK", block)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(2000, 5))
    distances = np.linalg.norm(x[:, None] - y, axis=-1)
    indices, found = nearest(x, y, 4)
    assert np.array_equal(indices, np.argsort(distances, axis=1)[:, :4])
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :4], rtol=1e-9)
    assert nearest(x, y[:2], 4)[0].shape == (30, 2)
    own = np.linalg.norm(y[[7, 1500], None] - y, axis=-1)
    np.testing.assert_allclose(nearest_other(y, np.array([7, 1500]), 3), np.sort(own, axis=1)[:, 3], rtol=1e-9)


@pytest.mark.parametrize("block", [1, 7, distances_module.BLOCK])
def test_a_row_is_no_neighbour_of_itself_but_its_copies_are(monkeypatch, block):
    monkeypatch.setattr(distances_module, "BLOCK", block)
    x = np.array([[0.0], [5.0], [5.0], [5.0], [7.0]])
    assert [nearest_other(x, np.arange(5), k).tolist() for k in (1, 2, 3)] == [
        [5, 0, 0, 0, 2],
        [5, 0, 0, 0, 2],
        [5, 2, 2, 2, 2],
    ]


COMPARISONS = {
    "blocks": lambda x, y: sum(distances.shape[0] for _, distances in distance_blocks(x, y)),
    "nearest": lambda x, y: nearest(x, y, 5),
    "nearest other": lambda x, y: nearest_other(y, np.arange(len(x)), 3),
}


@pytest.mark.parametrize(
    ("name", "others", "width"),
    [("blocks", 200_000, 4), ("nearest", 200_000, 4), ("nearest other", 200_000, 4),
     ("nearest", 20_000, 1024), ("nearest other", 20_000, 1024)],
)  # fmt: skip
def test_memory_does_not_grow_with_the_number_of_others(rng, name, others, width):
    """128 rows have 205 MB of distances to 200,000 others, and 20,000 of 1,024 features are 164 MB in float64. Five
    arrays of a block at most: distances, their order, either side in float64, and the block before."""
    x, y = (rng.random((count, width), dtype=np.float32) for count in (128, others))
    tracemalloc.start()
    COMPARISONS[name](x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 8 * distances_module.BLOCK


def test_copies_of_training_images_are_found(rng):
    """A sample made of a training image with a little noise comes first; a new one does not count."""
    training = rng.normal(size=(500, 20)).astype(np.float32)
    samples = rng.normal(size=(50, 20)).astype(np.float32) * 1.5
    samples[[3, 8]] = training[[100, 200]] + np.float32(0.01) * rng.normal(size=(2, 20))
    found = find_neighbours(samples, training, k=3)
    assert set(found.order[:2]) == {3, 8}
    assert found.indices[[3, 8], 0].tolist() == [100, 200]
    assert found.ratios[3] < 0.1
    assert 2 / 50 <= found.fraction < 0.2


def test_samples_like_any_other_real_image_are_suspicious_by_chance_only(rng):
    """By symmetry a new image is the nearest other of its neighbour about half of the times at most."""
    training, fresh = rng.normal(size=(400, 5)), rng.normal(size=(400, 5))
    by_chance = find_neighbours(fresh, training).fraction
    copies = find_neighbours(training + 1e-3 * rng.normal(size=(400, 5)), training).fraction
    assert 0.1 < by_chance < 0.7
    assert copies > 0.98
    twice = np.repeat(training[:10], 2, axis=0)  # their own neighbour is at no distance, which nothing is nearer than
    found = find_neighbours(np.concatenate([twice[:1], twice[:1] + 1]), twice)
    assert found.fraction <= 0.5
    assert not np.isnan(found.ratios).any()
    with pytest.raises(ValueError, match="one image"):
        find_neighbours(fresh, training[:1])


# ------------------------------------------------------------------------------------------------ scores


@pytest.fixture
def reference(tmp_path, rng):
    """Of pixels, 1x2x2."""
    real = rng.random((40, 4)).astype(np.float32)
    path = tmp_path / "ref.npz"
    write_reference(path, {"pixels": feature_statistics(real)}, {"pixels": real})
    return path


def test_images_of_another_size_are_refused_with_the_first_batch(reference):
    def drawn():
        yield torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
        raise AssertionError("a mistake is found with the first batch, not after hours")

    with pytest.raises(ValueError, match="4 features per image by pixels, but these images have 9"):
        score(drawn(), 2, 4, metrics_from(reference, []), {"pixels": load_detector("pixels")})


def test_the_warning_is_true(rng):
    """The fewer images of the very same distribution, the larger their distance."""
    real = feature_statistics(rng.normal(size=(5000, 20)))
    distances = [frechet_distance(feature_statistics(rng.normal(size=(n, 20))), real) for n in (15, 50, 500, 5000)]
    assert distances == sorted(distances, reverse=True)
