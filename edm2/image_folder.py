"""A folder of images, one per seed, that can be filled in several goes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edm2.images import save_png
from edm2.post_hoc_ema import atomic_output

DESCRIPTION = "generation.json"


class ImageFolder:
    """Images by seed, `000123.png`, with the settings that made them in generation.json from the first one on.

    Args:
        path: The folder; made with the first image.
        settings: What the images depend on beside their seed.
        subdirs: One sub-folder per thousand seeds (`000000/000123.png`), for large sets.

    Raises:
        ValueError: the folder holds images made with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], subdirs: bool = False) -> None:
        self.path = path
        self.settings = settings
        self.subdirs = subdirs
        self.description = path / DESCRIPTION
        if self.description.exists() and _read(self.description) != settings:
            raise ValueError(f"{path}: holds images made with other settings ({DESCRIPTION}); choose another --out")

    def file(self, seed: int) -> Path:
        """Where the image of a seed lies."""
        folder = self.path / f"{seed // 1000 * 1000:06d}" if self.subdirs else self.path
        return folder / f"{seed:06d}.png"

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """Those of `seeds` without an image yet. Images are complete or not there, so a file is a finished one."""
        return [seed for seed in seeds if not self.file(seed).is_file()]

    def save(self, seed: int, pixels: Tensor) -> None:
        """Write the image of a seed, uint8 [C, H, W]."""
        if not self.description.exists():
            with atomic_output(self.description) as temporary:
                Path(temporary).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        save_png(pixels, self.file(seed))

    def read(self, seeds: Sequence[int]) -> Tensor:
        """Images of seeds, uint8 [N, C, H, W]."""
        arrays = [np.array(Image.open(self.file(seed))) for seed in seeds]
        pixels = torch.from_numpy(np.stack(arrays))
        return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)


def _read(description: Path) -> Any:
    try:
        return json.loads(description.read_text(encoding="utf-8"))
    except ValueError:
        return None  # equal to no settings
