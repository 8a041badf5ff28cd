"""Reference files: ours there and back, published ones read as data, and everything else refused."""

import pickle

import numpy as np
import pytest
import torch
from golden_data import arrays, table
from published_references import hostile_reference, published_reference

from edm2.metrics import FeatureStatistics, FeatureSums, feature_statistics, load_detector, read_reference
from edm2.metrics.features import BATCH, READERS, displayed, parts_of, read_ahead
from edm2.metrics.reference import Collection, collect, evenly, read_features, reference_of, write_reference
from edm2.training import ArrayDataset, open_dataset


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits")


def same(a: FeatureStatistics, b: FeatureStatistics) -> bool:
    return np.array_equal(a.mu, b.mu) and np.array_equal(a.sigma, b.sigma) and a.num_images == b.num_images


# ------------------------------------------------------------------------------------------------ sums


def test_sums_are_those_of_all_features_at_once(rng):
    """Rounding of float64 only, whatever comes in: 1e-12 of numbers around 1. In float32, 1e8 + 1 = 1e8."""
    x = rng.normal(size=(300, 7)) @ rng.normal(size=(7, 7)) + 3
    sums = FeatureSums()
    for number, part in enumerate(np.array_split(x, 11)):
        sums.add(part if number % 2 else torch.from_numpy(part))
    found = sums.statistics()
    assert found.num_images == 300
    np.testing.assert_allclose(found.mu, x.mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(x, rowvar=False), rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="4 features per image, but 7"):
        sums.add(x[:, :4])
    single = FeatureSums()
    single.add(torch.tensor([[1e4], [1.0]]))
    assert single.products.dtype == np.float64
    assert single.products[0, 0] == 1e8 + 1


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_has_no_covariance(count):
    sums = FeatureSums()
    sums.add(np.ones((count, 3)))
    with pytest.raises(ValueError, match=f"{count} image.*at least two.*50,000"):
        sums.statistics()


# ------------------------------------------------------------------------------------------------ of datasets


def test_reference_of_a_dataset_is_that_of_its_images_as_files_show_them(digits):
    """Levels 0..16 become 0..255, as in the PNG files of samples. Sums of batches: rounding of float64."""
    seen = []
    found = reference_of(digits, load_detector("pixels"), report=seen.append)
    assert (sum(seen), max(seen)) == (1797, BATCH), "progress counts every image"
    pixels = displayed(digits, range(len(digits)))
    assert (pixels.min(), pixels.max()) == (0, 255)
    expected = feature_statistics(pixels.flatten(1).numpy() / np.float32(255))
    assert found.num_images == 1797
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="moments, not pixels"):
        reference_of(ArrayDataset(torch.zeros(4, 8, 2, 2)), load_detector("pixels"))


def test_images_are_read_ahead_in_order_and_not_without_bound(digits):
    """A few batches: those of a data set of 39 GB must not pile up."""
    asked = []

    class Watched(ArrayDataset):
        def images(self, indices):
            asked.append(indices[0])
            return super().images(indices)

    dataset = Watched(digits.images(range(640)), levels=17)
    parts = parts_of(640)
    batches = read_ahead(dataset, parts)
    first = next(batches)
    assert torch.equal(first, displayed(digits, parts[0]))
    assert len(asked) <= READERS + 1
    for part, batch in zip(parts[1:], batches, strict=True):
        assert torch.equal(batch, displayed(digits, part))


@pytest.mark.parametrize(("count", "keep"), [(130, 7), (130, 130), (130, 1000), (5, 2)])
def test_kept_features_are_evenly_spaced(count, keep):
    collection = Collection(count, keep)
    rows = torch.arange(count, dtype=torch.float32)[:, None]
    for part in rows.split(BATCH):
        collection.add(part)
    kept = min(keep, count)
    assert collection.features.flatten().tolist() == [i * count // kept for i in range(kept)]
    assert evenly(np.arange(count), kept).tolist() == [i * count // kept for i in range(kept)]
    assert collection.statistics.num_images == count


# ------------------------------------------------------------------------------------------------ files


def test_there_and_back(tmp_path, digits):
    [collection] = collect(digits, [load_detector("pixels")], keep=100)
    own = FeatureStatistics(np.zeros(2), np.eye(2), 50)
    path = tmp_path / "ref.npz"
    write_reference(path, {"pixels": collection.statistics, "a.b:c": own}, {"pixels": collection.features})
    found = read_reference(path)
    assert list(found) == ["pixels", "a.b:c"]
    assert same(found["pixels"], collection.statistics)
    assert same(found["a.b:c"], own)
    assert np.array_equal(read_features(path, "pixels"), collection.features)
    with pytest.raises(ValueError, match=r"no features of single images by a.b:c.*edm2 metrics ref"):
        read_features(path, "a.b:c")
    assert [file.name for file in tmp_path.iterdir()] == ["ref.npz"]


def test_a_published_reference_is_read_as_data(golden, tmp_path):
    """Equal to statistics that are known otherwise (golden README)."""
    found = read_reference(published_reference(golden, tmp_path))
    case = min(name for name, entry in table(golden, "metrics/metrics.json").items() if isinstance(entry, dict))
    numbers = arrays(golden, "metrics/metrics.safetensors")
    assert "fid" in found
    for statistics in found.values():
        assert np.array_equal(statistics.mu, numbers[f"{case}/ref/mu"].numpy())
        assert np.array_equal(statistics.sigma, numbers[f"{case}/ref/sigma"].numpy())
        assert statistics.num_images == len(numbers[f"{case}/ref/features"])
        assert statistics.sigma.dtype == np.float64


def test_a_hostile_reference_is_refused_and_does_nothing(golden, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = hostile_reference(golden, tmp_path_factory.mktemp("hostile"))
    with pytest.raises(ValueError, match=r"malicious-reference\.pkl: refused, because it asks for the global"):
        read_reference(path)
    assert not list(tmp_path.iterdir())
    assert not (path.parent / "PWNED").exists()


MU, SIGMA = np.zeros(3), np.eye(3)


@pytest.mark.parametrize("protocol", [3, 4])
def test_a_reference_with_two_detectors(tmp_path, protocol):
    path = tmp_path / "ref.pkl"
    content = {"num_images": 50000, "fid": {"mu": MU, "sigma": SIGMA}, "fd_dinov2": {"mu": MU + 1, "sigma": SIGMA}}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_reference(path)
    assert list(found) == ["fid", "fd_dinov2"]
    assert found["fd_dinov2"].mu.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"fid": {"mu": MU, "sigma": SIGMA}},
        {"num_images": 10},
        {"num_images": 1, "fid": {"mu": MU, "sigma": SIGMA}},
        {"num_images": 10, "fid": {"mu": MU}},
        {"num_images": 10, "fid": {"mu": MU, "sigma": SIGMA, "more": MU}},
        {"num_images": 10, "fid": {"mu": MU, "sigma": np.eye(4)}},
        {"num_images": 10, "fid": {"mu": MU, "sigma": SIGMA * np.nan}},
        {"num_images": 10, "fid": {"mu": MU.astype(complex), "sigma": SIGMA}},
        {"num_images": "10", "fid": {"mu": MU, "sigma": SIGMA}},
        {"num_images": 10, "fid": {"mu": FeatureStatistics, "sigma": SIGMA}},
    ],
)
def test_pickles_of_other_things_are_refused(content, tmp_path):
    path = tmp_path / "ref.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"ref\.pkl: refused, because it") as error:
        read_reference(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["ref.npz", "ref.pkl"])
def test_damaged_files_and_those_of_other_things_are_refused(name, tmp_path):
    """What is hostile, `tests/tools/test_hostile_files.py` tries."""
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ValueError, match=name):
        read_reference(path)
    np.savez(tmp_path / "images.npz", np.zeros((3, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"images.npz: holds no statistics.*edm2 metrics ref"):
        read_reference(tmp_path / "images.npz")
    with pytest.raises(FileNotFoundError, match=f"no{name}: no such file"):
        read_reference(tmp_path / f"no{name}")
