"""Pictures for a page: WebP files in a folder, each made once."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from edm2.io.images import image_grid
from edm2.post_hoc_ema import atomic_output
from edm2.sweep.score_cache import key_of

LARGEST = 128
"""Side of an image in a grid; larger ones are reduced."""

SMALLEST = 32
"""Side of an image in a grid, about; smaller ones are enlarged by a whole factor."""

LOSSLESS = 64 << 10
"""Bytes up to which a picture is stored without loss."""


@dataclass(frozen=True)
class Picture:
    """A picture and its size in pixels."""

    webp: bytes
    width: int
    height: int


class PictureCache:
    """Pictures in a folder, by hashes of all that decides them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, facts: dict[str, Any]) -> Picture | None:
        """Return the picture that these facts decide, if it is there."""
        path = self._path(facts)
        if not path.exists():
            return None
        content = path.read_bytes()
        return Picture(content, *Image.open(io.BytesIO(content)).size)

    def put(self, facts: dict[str, Any], image: Image.Image) -> Picture:
        """Keep the picture that these facts decide."""
        content = encoded(image)
        with atomic_output(self._path(facts)) as temporary:
            temporary.write_bytes(content)
        return Picture(content, *image.size)

    def get(self, facts: dict[str, Any], make: Callable[[], Image.Image]) -> Picture:
        """Return the picture of these facts, made now if it is not there."""
        return self.read(facts) or self.put(facts, make())

    def _path(self, facts: dict[str, Any]) -> Path:
        return self.folder / f"{key_of(facts)}.webp"


def encoded(image: Image.Image) -> bytes:
    """Encode as WebP: without loss if that is small, else at a quality that hides it."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True)
    if file.tell() > LOSSLESS:
        file = io.BytesIO()
        image.save(file, "WEBP", quality=88)
    return file.getvalue()


def grid_image(pixels: Tensor, columns: int) -> Image.Image:
    """Arrange images, uint8 [N, C, H, W], in rows: small ones enlarged, large ones reduced, two channels as one."""
    height, width = pixels.shape[-2:]
    if max(height, width) > LARGEST:
        ratio = LARGEST / max(height, width)
        size = max(1, round(height * ratio)), max(1, round(width * ratio))
        pixels = adaptive_avg_pool2d(pixels.float(), size).round().to(pixels.dtype)
    scale = max(1, SMALLEST // max(height, width))
    grid = image_grid(pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1], columns, scale, gap=scale)
    return Image.fromarray(grid.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())
