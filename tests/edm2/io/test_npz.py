"""Many images in one file that never was in memory."""

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edm2.io.npz import write_npz


def pictures(count: int, shape: tuple[int, ...] = (4, 6, 3), dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_numpy_reads_what_was_written(tmp_path, dtype):
    images, labels = pictures(5, dtype=dtype), np.arange(5)
    write_npz(tmp_path / "deep" / "samples.npz", iter(images), 5, labels)
    with np.load(tmp_path / "deep" / "samples.npz", allow_pickle=False) as read:
        assert sorted(read) == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(read["arr_0"], images)
        np.testing.assert_array_equal(read["arr_1"], labels)
        assert read["arr_0"].dtype == dtype
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["samples.npz"]


def test_bytes_depend_on_the_contents_alone(tmp_path):
    """Not on how an array lies in memory: channels come first in the network and last in the file. Labels are left out
    where there are none."""
    images = pictures(3)
    turned = [np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0) for image in images]
    for name, given in (("a.npz", images), ("b.npz", turned)):
        write_npz(tmp_path / name, given, 3)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        [member] = archive.infolist()
        assert (member.filename, member.date_time) == ("arr_0.npy", (1980, 1, 1, 0, 0, 0))


def test_the_whole_need_not_fit_into_memory(tmp_path):
    """64 MiB of images through less than 4 MiB."""
    image = np.zeros((512, 1024), np.uint8)
    tracemalloc.start()
    write_npz(tmp_path / "a.npz", (image for _ in range(128)), 128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    assert (tmp_path / "a.npz").stat().st_size > 64 << 20


@pytest.mark.slow
def test_files_larger_than_4_gib(tmp_path):
    """ZIP's own limit; zip64 has none."""
    image = np.zeros((1024, 1024, 1024), np.uint8)
    write_npz(tmp_path / "a.npz", (image + i for i in range(5)), 5, np.arange(5))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None
        assert archive.getinfo("arr_0.npy").file_size > 5 << 30


@pytest.mark.parametrize(
    ("images", "count"),
    [(pictures(2), 3), (pictures(3), 2), ([], 0), ([*pictures(1), *pictures(1, (2, 2, 3))], 2)],
    ids=["too few", "too many", "none", "two sizes"],
)
def test_a_failure_leaves_nothing(tmp_path: Path, images, count):
    with pytest.raises(ValueError, match=r"a\.npz") as error:
        write_npz(tmp_path / "a.npz", iter(images), count)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
