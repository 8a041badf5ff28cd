"""Stores of images by seed: a folder of files that can be filled in several runs, or memory."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edm2.io.images import save_png
from edm2.post_hoc_ema import atomic_output

DESCRIPTION = "generation.json"


class PngFiles:
    """PNG files of uint8 [C, H, W] with 1 to 4 channels."""

    suffix = ".png"

    def write(self, image: Tensor, path: Path) -> None:
        """Write one image, complete or not at all."""
        save_png(image, path)

    def read(self, path: Path) -> Tensor:
        """Read one image. Raises ValueError if it is damaged."""
        with _damage_named(path), Image.open(path, formats=["PNG"]) as image:
            pixels = torch.from_numpy(np.array(image))
            return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


class NpyFiles:
    """NPY files of [C, H, W], any dtype."""

    suffix = ".npy"

    def write(self, image: Tensor, path: Path) -> None:
        """Write one image, complete or not at all."""
        with atomic_output(path) as temporary, open(temporary, "wb") as file:
            np.save(file, image.cpu().numpy())

    def read(self, path: Path) -> Tensor:
        """Read one image. Raises ValueError if it is damaged."""
        with _damage_named(path):
            return torch.from_numpy(np.load(path, allow_pickle=False))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn any exception of a reader of damaged bytes into one line with the remedy."""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: cannot be read: {reason}; remove it and run the same again") from error


class ImageFolder:
    """Store of images in files, `000123.png`, beside generation.json with the settings that they were drawn with.

    Args:
        path: The folder; made with the first image.
        settings: Settings that the images depend on, besides their seed, as JSON.
        subdirs: One sub-folder per thousand seeds (`000000/000123.png`), for large sets.
        files: Format of the files.

    Raises:
        ValueError: the folder holds images made with other settings.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], subdirs: bool = False, files: PngFiles | NpyFiles | None = None
    ) -> None:
        self.path = path
        self.settings = settings
        self.subdirs = subdirs
        self.files = PngFiles() if files is None else files
        self.description = path / DESCRIPTION
        if self.description.exists() and (names := _differences(self.description, settings)):
            raise ValueError(
                f"{path}: holds images made with other settings ({names} in {DESCRIPTION}); choose another --out, or "
                "repeat the settings to continue"
            )

    def file(self, seed: int) -> Path:
        """Path of a seed's image."""
        folder = self.path / f"{seed // 1000 * 1000:06d}" if self.subdirs else self.path
        return folder / f"{seed:06d}{self.files.suffix}"

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """Seeds without an image yet. Files are written completely or not at all, so one that exists is finished.

        Raises:
            ValueError: there are images of these seeds, but no generation.json.
        """
        missing = [seed for seed in seeds if not self.file(seed).is_file()]
        if len(missing) < len(seeds) and not self.description.exists():
            raise ValueError(f"{self.path}: holds images of these seeds, but no {DESCRIPTION}; choose another --out")
        return missing

    def claim(self) -> None:
        """Write generation.json unless it exists; with the first image, so that a mistake before leaves no folder."""
        if not self.description.exists():
            with atomic_output(self.description) as temporary:
                Path(temporary).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")

    def save(self, seed: int, image: Tensor) -> None:
        """Write the image of a seed; threads may write several at a time."""
        self.files.write(image, self.file(seed))

    def read(self, seeds: Sequence[int]) -> Tensor:
        """Read images of seeds, [N, C, H, W]. Raises ValueError if one is damaged."""
        return torch.stack([self.files.read(self.file(seed)) for seed in seeds])


@dataclass
class ImagesInMemory:
    """Store of a few images, without files."""

    images: dict[int, Tensor] = field(default_factory=dict)

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """Seeds without an image yet."""
        return [seed for seed in seeds if seed not in self.images]

    def claim(self) -> None:
        """Do nothing: memory needs no preparation."""

    def save(self, seed: int, image: Tensor) -> None:
        """Store the image of a seed."""
        self.images[seed] = image

    def read(self, seeds: Sequence[int]) -> Tensor:
        """Stack images of seeds, [N, C, H, W]."""
        return torch.stack([self.images[seed] for seed in seeds])


ImageStore = ImageFolder | ImagesInMemory


def _differences(description: Path, settings: dict[str, Any]) -> str:
    """Names of the settings that differ from a folder's description; empty if none does."""
    try:
        found = json.loads(description.read_text(encoding="utf-8"))
        return ", ".join(name for name in found | settings if found.get(name) != settings.get(name))
    except (AttributeError, TypeError, ValueError):
        return "unreadable"
