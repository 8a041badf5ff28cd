"""Inception features: FID as in the literature, FID without aliasing, and class probabilities for the Inception score.

Network, weights and the ways of resizing are those of clean-fid (arXiv 2104.11222); only two of its modules are
imported, since the others want torchvision. The weights are one TorchScript file (91 MB), given or fetched once.
"""

import importlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edm2.metrics.pretrained import as_rgb, fetch_weights, load_torchscript

FILE_NAME = "inception-2015-12-05.pt"
"""Name that clean-fid gives the weights, and the end of their address."""

INSTALL = "pip install 'edm2[metrics]'"
"""Without clean-fid's other dependencies: they belong to modules that are not used, and may replace torch."""


class Inception:
    """2048 pooled features, images resized inside the network as TensorFlow did: FID as papers report it.

    Args:
        weights: File of the network; default: fetched once.
        device: Device to compute on.

    Raises:
        OSError: clean-fid is not installed, or the weights are missing and cannot be fetched.
        ValueError: the file is no TorchScript file of this network.
    """

    name = "fid"
    title = "FID"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        self._net: Any = _load(weights, device, resize_inside=True)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, 2048]."""
        return self._net(as_rgb(images.to(self._device)).float()).float()


class CleanInception:
    """The same features of images resized by a filter that does not alias (`clean` of clean-fid).

    Args and errors as of `Inception`.
    """

    name = "fid-clean"
    title = "FID-clean"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        self._resize = _module("resize").build_resizer("clean")
        self._net = _load(weights, device, resize_inside=False)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, 2048]."""
        arrays = as_rgb(images).permute(0, 2, 3, 1).cpu().numpy()
        resized = torch.from_numpy(np.stack([self._resize(array) for array in arrays])).permute(0, 3, 1, 2)
        return self._net(resized.to(self._device)).float()


class InceptionProbabilities(Inception):
    """Probabilities of Inception's 1008 classes.

    The bias of the last layer is left out, as in the original implementation of the Inception score.
    """

    name = "is"
    title = "Inception score"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, 1008]."""
        return self._net.base(as_rgb(images.to(self._device)).float(), no_output_bias=True).float()


def _load(weights: str | Path | None, device: torch.device | str, resize_inside: bool) -> torch.nn.Module:
    """Load clean-fid's network from a file of any name."""
    clean_fid = _module("inception_torchscript")
    option = "--inception FILE; in edm2 sweep and ablate --weights FILE"
    path = Path(weights) if weights is not None else fetch_weights(clean_fid.inception_url, option)
    script = load_torchscript(path, "cpu")  # for its errors: clean-fid's say less
    if not hasattr(script, "layers"):
        raise ValueError(f"{path}: is TorchScript, but not of clean-fid's Inception ({FILE_NAME})")
    with TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / FILE_NAME)
        net = clean_fid.InceptionV3W(folder, download=False, resize_inside=resize_inside)
    return net.to(device).eval()


def _module(name: str) -> ModuleType:
    """Import a module of clean-fid."""
    try:
        return importlib.import_module(f"cleanfid.{name}")
    except ImportError as error:
        raise OSError(f"clean-fid is not installed ({error}): {INSTALL}") from None
