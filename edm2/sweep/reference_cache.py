"""Statistics of real images, kept beside a sweep's scores, so that the images are looked at once.

`reference-<detector>-<key>.npz` is a reference file like any other (`--ref` takes it). Its key stands for everything
that decides the statistics: images, detector, weights. Any change leads to another name, never to old numbers.
"""

from pathlib import Path
from typing import Any

import edm2
from edm2.metrics import Detector, FeatureStatistics, read_reference, reference_of, write_reference
from edm2.metrics.detectors import UserDetector
from edm2.metrics.features import ReportProgress
from edm2.sweep.score_cache import key_of
from edm2.training import Dataset
from edm2.training.distributed.processes import ONE_PROCESS, Processes


def cached_reference(
    folder: str | Path,
    dataset: Dataset,
    detector: Detector,
    weights: Path | None = None,
    processes: Processes = ONE_PROCESS,
    report: ReportProgress = lambda n: None,
) -> FeatureStatistics:
    """Do the same as `edm2.metrics.reference_of`, from a file in `folder` if there is one; else write one.

    Nothing is kept for images whose dataset has no fingerprint, nor for detectors of the user's own, whose program may
    change.

    Of several processes the first one reads and writes. `weights` is the file of the detector's, if one was given.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: as `reference_of`, or the file is damaged.
    """
    path = _path(Path(folder), dataset, detector, weights) if processes.is_first else None
    known = read_reference(path)[detector.name] if path is not None and path.exists() else None
    if known := processes.broadcast(known):
        return known
    found = reference_of(dataset, detector, processes, report)
    if path is not None:
        write_reference(path, {detector.name: found})
    return found


def _path(folder: Path, dataset: Dataset, detector: Detector, weights: Path | None) -> Path | None:
    images = dataset.fingerprint()
    if images is None or isinstance(detector, UserDetector):
        return None
    facts: dict[str, Any] = {
        "images": [images, len(dataset), dataset.shape, dataset.levels],
        "detector": detector.name,
        "weights": None,
        "version": edm2.__version__,
    }
    if weights is not None:  # facts that change when the file does, without reading it
        facts["weights"] = [str(weights.resolve()), weights.stat().st_size, weights.stat().st_mtime_ns]
    return folder / f"reference-{detector.name}-{key_of(facts)[:12]}.npz"
