"""Detectors: functions from images to features, by which two sets of images are compared."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from edm2.metrics.registry import CLASSIFIERS, DETECTORS
from edm2.training.imports import import_callable, import_target

MAX_PIXELS = 4096
"""Values per image up to which pixels are features: their covariance must be estimable, and its roots affordable."""


class Detector(Protocol):
    """Function from images to features, constructed with a file of weights (or None) and a device."""

    name: str
    """Key in reference files."""
    title: str
    """Name of its Frechet distance in tables and plots."""

    def __call__(self, images: Tensor) -> Tensor:
        """Compute features: uint8 [N, C, H, W] in 0..255, on any device -> float32 [N, D]."""


class PixelDetector:
    """The pixels themselves, in [0, 1]: sensitive to shifts by one pixel, so it suits small images only."""

    name = "pixels"
    title = "FD-pixels"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        pass  # there are no weights, and images stay where they are

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, C H W]. Raises ValueError for more than `MAX_PIXELS` values per image."""
        features = images.flatten(1)
        if features.shape[1] > MAX_PIXELS:
            channels, height, width = images.shape[1:]
            raise ValueError(
                f"images of {channels}x{height}x{width} are too large to compare pixel by pixel (at most {MAX_PIXELS} "
                "values); take another detector, such as efficientnet-lite0"
            )
        return features.float() / 255


class UserDetector:
    """A function of the user's own.

    Args:
        name: `module:callable`; modules of the current folder are found too. A class is made into an object first,
            without arguments. Called with uint8 [N, C, H, W], it returns [N, D].
        device: Device of the images that it is called with.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.title = title_of(name)
        self._device = torch.device(device)
        found = import_callable(name, "a detector")
        self._call = found() if isinstance(found, type) else found

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, D]. Raises ValueError where the function returns anything else."""
        with torch.inference_mode():
            features = torch.as_tensor(self._call(images.to(self._device)))
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"{self.name}: returned {tuple(features.shape)} for {len(images)} images; expected one row of features "
                f"for each, [{len(images)}, D]"
            )
        return features.float()


def title_of(name: str) -> str:
    """Title of a detector's Frechet distance, without loading it."""
    registered = DETECTORS.get(name)
    return f"FD-{name.rpartition(':')[2]}" if registered is None else import_target(registered.target).title


def load_detector(name: str, weights: str | Path | None = None, device: torch.device | str = "cpu") -> Detector:
    """Load a detector, ready to be called.

    Args:
        name: Key of `DETECTORS` or `CLASSIFIERS`, or `module:callable`.
        weights: File of the network's weights; default: downloaded once, or those that came with a package. Ignored by
            detectors without weights.
        device: Device to compute on.

    Raises:
        ValueError: there is no such detector, or the weights are no network of this kind.
        OSError: the weights, or the package that they come with, are missing and cannot be fetched.
    """
    registered = DETECTORS.get(name) or CLASSIFIERS.get(name)
    if registered is not None:
        return import_target(registered.target)(weights, device)
    if ":" in name:
        return UserDetector(name, device)
    raise ValueError(f"there is no detector {name!r}; take {', '.join(DETECTORS)}, or module:callable of your own")
