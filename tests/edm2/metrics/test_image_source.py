"""Images in NPZ files are scored with the axes that evaluation suites give them, or refused."""

import zipfile

import numpy as np
import pytest

from edm2.metrics.image_source import open_images
from edm2.training import DatasetError


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_come_last(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, channels), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=images)
    np.testing.assert_array_equal(open_images(tmp_path / "a.npz").images(range(3)), images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("shape", "remedy"), [((3, 1, 8, 8), "transpose"), ((3, 3, 8, 8), "transpose"), ((3, 8, 8, 5), "1 to 4 channels")]
)
def test_other_layouts_are_refused_by_their_shape(tmp_path, shape, remedy):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros(shape, np.uint8))
    with pytest.raises(DatasetError, match=rf"a\.npz: arr_0 has shape \[3, .*{remedy}"):
        open_images(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_read_in_any_order_without_those_before_them(tmp_path, monkeypatch, save):
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", arr_1=np.arange(9), arr_0=images)
    found = open_images(tmp_path / "a.npz")
    monkeypatch.setattr(zipfile.ZipExtFile, "read", None)  # it begins anew at each step back
    np.testing.assert_array_equal(found.images([8, 2, 5, 0]), images[[8, 2, 5, 0]].transpose(0, 3, 1, 2))
