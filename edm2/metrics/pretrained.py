"""Weights and image sizes, which detectors made of pretrained networks share."""

import os
from pathlib import Path

import torch
from torch import Tensor

from edm2.post_hoc_ema import atomic_output


def as_rgb(images: Tensor) -> Tensor:
    """Repeat the channel of gray images [N, 1, H, W] three times; return RGB images as they are."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images with {images.shape[1]} channels: pretrained detectors take gray or RGB images")
    return images.expand(-1, 3, -1, -1)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 [N, C, H, W] to float32 [N, C, size, size] in 0..255: bicubic, without aliasing, not rounded."""
    x = torch.nn.functional.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    return x.clip(0, 255)  # bicubic filters overshoot


def fetch_weights(url: str, option: str) -> Path:
    """Path of the file behind `url` in torch's cache, downloaded if it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.exists():
        return path
    try:
        with atomic_output(path) as temporary:
            torch.hub.download_url_to_file(url, os.fspath(temporary), progress=False)
    except OSError as error:  # urllib's are subclasses
        raise OSError(
            f"{path.name}: these weights are not on this machine and cannot be fetched ({error}); download {url} "
            f"elsewhere and give the file ({option})"
        ) from error
    return path


def check_is_file(path: Path) -> None:
    """Raise FileNotFoundError unless `path` is a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it should hold the weights of a detector")


def load_torchscript(path: Path, device: torch.device | str) -> torch.jit.ScriptModule:
    """Load a TorchScript network in evaluation mode."""
    check_is_file(path)
    try:
        return torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{path}: is no TorchScript file, which the weights of this detector are") from error
