"""Weights of detectors: files given, fetched or installed, and clear words where there are none."""

import os
from pathlib import Path

import torch

from edm2.post_hoc_ema import atomic_output


def fetch_weights(url: str, option: str) -> Path:
    """The file behind `url`, from torch's cache or the net.

    Raises:
        OSError: it is not there and cannot be fetched; `option` is what the message names as the way out.
    """
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
    """Raises FileNotFoundError unless `path` is a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it should hold the weights of a detector")


def load_torchscript(path: Path, device: torch.device | str) -> torch.jit.ScriptModule:
    """A TorchScript network in evaluation mode.

    Raises:
        ValueError: the file is none.
        FileNotFoundError: there is none.
    """
    check_is_file(path)
    try:
        return torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{path}: is no TorchScript file, which the weights of this detector are") from error
