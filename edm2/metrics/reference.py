"""Statistics of real images, by detector, in files that samples are compared with.

Ours are `.npz`. For every detector:

    <detector>/mu            float64 [D]
    <detector>/sigma         float64 [D, D]
    <detector>/num_images    int64
    <detector>/features      float32 [M, D] of evenly spaced images; for metrics that compare single images (kernel
                             distance, precision and recall)

The published files are pickles of a plain dict {num_images, <detector>: {mu, sigma}, ...}. They are read as data:
nothing in them is executed, and one that holds anything else is refused.
"""

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from edm2.io.npz import read_member
from edm2.io.published.arrays import read_array
from edm2.io.published.inert_pickle import PickleFile, PickleRefused, read_pickle
from edm2.metrics.detectors import Detector
from edm2.metrics.features import ReportProgress, features_of
from edm2.metrics.frechet import FeatureStatistics, FeatureSums
from edm2.post_hoc_ema import atomic_output
from edm2.training import Dataset
from edm2.training.data.dataset import evenly_spaced_indices
from edm2.training.distributed.processes import ONE_PROCESS, Processes

KEPT = 10_000
"""Default number of images whose features a reference keeps."""


class Collection:
    """Sums of the features of one set of images, and some of the features themselves.

    Args:
        count: Images in the set.
        keep: Images whose features are kept, evenly spaced.
    """

    def __init__(self, count: int, keep: int = 0) -> None:
        self.sums = FeatureSums()
        self._wanted = evenly_spaced_indices(count, keep)
        self._kept: list[np.ndarray] = []

    def add(self, features: Tensor) -> None:
        """Add the features of the next images, float32 [N, D]."""
        start = self.sums.num_images
        self.sums.add(features)
        first, last = np.searchsorted(self._wanted, [start, self.sums.num_images])
        if last > first:
            self._kept.append(features.numpy()[self._wanted[first:last] - start])

    @property
    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of all images. Raises ValueError if they are fewer than two."""
        return self.sums.statistics()

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """Features that are kept, [M, D]."""
        return np.concatenate(self._kept)


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """Pick `count` of the rows, evenly spaced; all, if there are fewer."""
    return rows[evenly_spaced_indices(len(rows), count)]


def reference_of(
    dataset: Dataset, detector: Detector, processes: Processes = ONE_PROCESS, report: ReportProgress = lambda n: None
) -> FeatureStatistics:
    """Compute the feature statistics of all images of a dataset.

    Args:
        dataset: Pixels; levels become those of image files.
        detector: Function that computes features.
        processes: Processes that share the work; all get the same result, to the bit that of one process.
        report: Called with a number of finished images.

    Raises:
        ValueError: the data are not pixels, or fewer than two.
    """
    return collect(dataset, [detector], processes=processes, report=report)[0].statistics


def collect(
    dataset: Dataset,
    detectors: Sequence[Detector],
    keep: int = 0,
    processes: Processes = ONE_PROCESS,
    report: ReportProgress = lambda n: None,
) -> list[Collection]:
    """Do the same as `reference_of` for several detectors at once, and keep the features of `keep` images."""
    collections = [Collection(len(dataset), keep) for _ in detectors]
    for batch in features_of(dataset, detectors, processes, report):
        for collection, features in zip(collections, batch, strict=True):
            collection.add(features)
    return collections


# ------------------------------------------------------------------------------------------------ files


def write_reference(
    path: str | Path,
    statistics: Mapping[str, FeatureStatistics],
    features: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> None:
    """Write a reference file (.npz), complete or not at all.

    Args:
        statistics: Statistics by detector's name.
        features: Features of some of the images by detector's name, [M, D].
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"{path}: a reference file's name ends in .npz")
    arrays: dict[str, Any] = {f"{name}/features": array for name, array in (features or {}).items()}
    for name, s in statistics.items():
        arrays |= {f"{name}/mu": s.mu, f"{name}/sigma": s.sigma, f"{name}/num_images": np.int64(s.num_images)}
    with atomic_output(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_reference(path: str | Path) -> dict[str, FeatureStatistics]:
    """Read the statistics in a reference file, by detector's name.

    Args:
        path: Our format (.npz), or a published file (.pkl), of which nothing is executed.

    Raises:
        ValueError: neither of the two, damaged, or a pickle with anything else in it.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        return _read_pickle(path)
    arrays = _read_npz(path, ("mu", "sigma", "num_images"))
    names = [key.removesuffix("/mu") for key in arrays if key.endswith("/mu")]
    try:
        entries = {name: [arrays[f"{name}/{part}"] for part in ("mu", "sigma", "num_images")] for name in names}
        found = {name: _checked(mu, sigma, int(number)) for name, (mu, sigma, number) in entries.items()}
    except (KeyError, TypeError, ValueError):
        found = {}
    if not found:
        raise ValueError(f"{path}: holds no statistics of images; make such a file with edm2 metrics ref")
    return found


def read_features(path: str | Path, detector: str) -> npt.NDArray[np.float32]:
    """Read the features of single images in a reference file, [M, D].

    Raises:
        ValueError: there are none.
        OSError: it cannot be read.
    """
    key = f"{detector}/features"
    arrays = {} if Path(path).suffix == ".pkl" else _read_npz(Path(path), ("features",))
    if key not in arrays or arrays[key].ndim != 2 or not _are_finite_floats(arrays[key]):
        raise ValueError(
            f"{path}: holds no features of single images by {detector}, which this metric compares with; make one with "
            f"edm2 metrics ref DATA OUT.npz --detector {detector}"
        )
    return arrays[key]


def _are_finite_floats(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and bool(np.isfinite(array).all())


def _read_npz(path: Path, parts: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the arrays of a file whose names end in one of `parts`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            wanted = [name for name in names if name.rpartition("/")[2] in parts]
            return {name: read_member(archive, f"{name}.npy") for name in wanted}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; make one with edm2 metrics ref DATA {path}") from None
    except Exception as error:  # damaged or hostile bytes make readers raise almost anything
        if isinstance(error, OSError) and error.filename:
            raise
        raise ValueError(f"{path}: is no reference file (.npz, or .pkl as published), or damaged") from error


def _read_pickle(path: Path) -> dict[str, FeatureStatistics]:
    try:
        with path.open("rb") as file:
            return _statistics_in(PickleFile(file))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except PickleRefused as error:
        raise ValueError(f"{path}: refused, because it {error}") from None


def _statistics_in(file: PickleFile) -> dict[str, FeatureStatistics]:
    """Read {num_images, <detector>: {mu, sigma}, ...}; nothing in the pickle is executed."""
    match read_pickle(file):
        case {"num_images": int(number), **detectors} if detectors:
            return {str(name): _detector_statistics(file, entry, number) for name, entry in detectors.items()}
    raise PickleRefused("is no dict of num_images and statistics by detector")


def _detector_statistics(file: PickleFile, entry: Any, num_images: int) -> FeatureStatistics:
    match entry:
        case {"mu": mu, "sigma": sigma, **others} if not others:
            mean, covariance = read_array(mu, file), read_array(sigma, file)
            try:
                return _checked(mean, covariance, num_images)
            except ValueError as error:
                raise PickleRefused(f"holds {error}") from None
    raise PickleRefused("holds something else than mu and sigma of a detector")


def _checked(mu: np.ndarray, sigma: np.ndarray, num_images: int) -> FeatureStatistics:
    """Statistics in float64. Raises ValueError unless these are a mean and a covariance."""
    if mu.ndim != 1 or sigma.shape != mu.shape * 2:
        raise ValueError(f"mu of shape {mu.shape} and sigma of shape {sigma.shape}, not [D] and [D, D]")
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f" or num_images < 2:
        raise ValueError("statistics that are no floats, or of fewer than two images")
    if not (_are_finite_floats(mu) and _are_finite_floats(sigma) and math.isfinite(sigma.trace())):
        raise ValueError("statistics with NaN or infinity")
    return FeatureStatistics(mu.astype(np.float64), sigma.astype(np.float64), num_images)
