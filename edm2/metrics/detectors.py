"""Detectors: what turns images into features, by which two sets of images are compared.

| name | features | title of its Frechet distance |
|---|---|---|
| pixels | the pixels themselves; for small images | FD-pixels |
| efficientnet-lite0 | an ImageNet classifier that comes in a pip package (`efficientnet.py`) | FD-EfficientNet |
| fid, fid-clean | Inception (`inception.py`), resized as in the literature, or without aliasing | FID, FID-clean |
| fd_dinov2 | DINOv2 ViT-L/14 (`dinov2.py`) | FD-DINOv2 |
| module:callable | whatever a function of the user's own returns | FD-callable |

Names are the keys under which reference files keep statistics.
"""

import importlib
import sys
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

MAX_PIXELS = 4096
"""Values per image up to which pixels are features: their covariance must be estimable, and its roots affordable."""


class Detector(Protocol):
    """Turns images into features."""

    name: str
    """Key in reference files."""
    title: str
    """What plots call its Frechet distance."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images: uint8 [N, C, H, W] in 0..255, on any device -> float32 [N, D]."""


class PixelDetector:
    """The pixels themselves, in [0, 1]. Differences are those of exact places, so this suits small images only."""

    name = "pixels"
    title = "FD-pixels"

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


class OwnDetector:
    """A function of the user's own.

    Args:
        name: `module:callable`; modules of the current folder are found too. A class is made into an object first,
            without arguments. Called with uint8 [N, C, H, W], it returns [N, D].
        device: Where images lie when it is called.

    Raises:
        ValueError: there is no such module, or nothing callable of this name in it.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.title = f"FD-{name.rpartition(':')[2]}"
        self._device = torch.device(device)
        self._call = _import_callable(name)

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


def _import_callable(name: str):
    module_name, _, attribute = name.rpartition(":")
    if (here := str(Path.cwd())) not in sys.path:  # the console script, other than `python -m`, leaves it out
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name}: cannot be imported ({error}); a detector is given as module:callable") from error
    if not callable(found):
        raise ValueError(f"{name}: is no function that could be called with images")
    return found() if isinstance(found, type) else found


def as_rgb(images: Tensor) -> Tensor:
    """Gray images [N, 1, H, W] as RGB, which networks want; RGB as it is.

    Raises:
        ValueError: another number of channels.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images with {images.shape[1]} channels: the networks that judge images take gray or RGB")
    return images.expand(-1, 3, -1, -1)


DETECTORS = ("pixels", "efficientnet-lite0", "fid", "fid-clean", "fd_dinov2")
"""Names that `load_detector` knows."""


def load_detector(name: str, weights: str | Path | None = None, device: torch.device | str = "cpu") -> Detector:
    """A detector, ready to be called.

    Args:
        name: One of `DETECTORS`, or `module:callable`; "is" for the probabilities that the Inception score takes.
        weights: File of the network's weights; default: fetched once, or those that came with a package. Other
            detectors have none and take no notice.
        device: Where to compute.

    Raises:
        ValueError: there is no such detector, or the weights are no network of this kind.
        OSError: the weights, or the package that they come with, are missing and cannot be fetched.
    """
    match name:
        case "pixels":
            return PixelDetector()
        case "efficientnet-lite0":
            from edm2.metrics.efficientnet import EfficientNetLite0

            return EfficientNetLite0(weights, device)
        case "fid" | "fid-clean":
            from edm2.metrics.inception import CleanInception, Inception

            return (Inception if name == "fid" else CleanInception)(weights, device)
        case "is":
            from edm2.metrics.inception import InceptionProbabilities

            return InceptionProbabilities(weights, device)
        case "fd_dinov2":
            from edm2.metrics.dinov2 import DINOv2

            return DINOv2(weights, device)
    if ":" in name:
        return OwnDetector(name, device)
    raise ValueError(f"there is no detector {name!r}; take {', '.join(DETECTORS)}, or module:callable of your own")
