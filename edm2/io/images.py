"""Pixels to PNG files, each written completely or not at all."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from edm2.post_hoc_ema import atomic_output


def save_png(pixels: Tensor, path: str | Path) -> None:
    """Write one image, uint8 [C, H, W] with 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGBA) channels."""
    if pixels.dtype != torch.uint8 or len(pixels) not in (1, 2, 3, 4):
        raise ValueError(f"{path}: a PNG takes uint8 and 1 to 4 channels, not {pixels.dtype} and {len(pixels)}")
    array = pixels.permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    with atomic_output(path) as temporary:
        image.save(temporary, format="PNG")


def image_grid(pixels: Tensor, columns: int | None = None, scale: int = 1, gap: int = 0) -> Tensor:
    """Arrange images in rows.

    Args:
        pixels: uint8 [N, C, H, W].
        columns: Images per row; default: about as many as there are rows.
        scale: Side of a pixel.
        gap: White pixels between images, after enlarging.

    Returns:
        uint8 [C, H', W'].
    """
    if len(pixels) == 0:
        raise ValueError("a grid needs at least one image")
    n, c, h, w = pixels.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cell_h, cell_w = h * scale + gap, w * scale + gap
    grid = pixels.new_full((c, rows * cell_h - gap, columns * cell_w - gap), 255)
    for i, image in enumerate(pixels):
        top, left = i // columns * cell_h, i % columns * cell_w
        enlarged = image.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
        grid[:, top : top + h * scale, left : left + w * scale] = enlarged
    return grid


def save_grid(pixels: Tensor, path: str | Path, columns: int | None = None) -> None:
    """Write a grid of images, uint8 [N, C, H, W], with small images enlarged to about 64 pixels."""
    scale = max(1, 64 // max(pixels.shape[-2:]))
    save_png(image_grid(pixels, columns, scale, gap=scale if scale > 1 else 0), path)
