"""Images of 9 to 16 bits per channel scaled to 8: level v of 0 to 2^bits - 1 becomes round(255 v / (2^bits - 1)).

Pillow gives all bits of gray images alone. Of colors it keeps the first of two bytes; they are decoded a second time in
the other byte order, so that it keeps the second one.
"""

import sys
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from edm2.training.data.archive import loaded

MOST_BITS = 16
"""Bits per channel at most: numbers of 32 bits, most of them measurements, have no white to scale to."""

OTHER_ENDS = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
"""Pillow's names of the byte orders, and of those that exchange the bytes."""


def eight_bits(image: Image.Image, again: Image.Image, bits: int) -> Image.Image:
    """Decode an image of 9 to 16 bits per channel: gray, RGB, or either with transparency.

    Where Pillow reads no more than the first byte of every color (CMYK, colors multiplied by their transparency), that
    is the result, which is less by one level at most.

    Args:
        image: The image, opened and not decoded yet.
        again: The same, opened once more.
        bits: Bits per channel.

    Raises:
        ValueError: The numbers have a sign, so they are no levels. Any other error if it is damaged.
    """
    top, is_gray_png = (1 << bits) - 1, image.format == "PNG" and image.mode == "I"
    if image.mode.startswith("I;16") or is_gray_png:  # the latter before Pillow 11.3
        values = np.asarray(loaded(image)).astype(np.uint16)[..., None]
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:  # 0 is white
            values = top - values
    elif image.mode in ("I", "F"):
        raise ValueError("numbers with a sign or fractions, which are no levels of gray; convert it to 16 or 8 bits")
    elif (colors := _sixteen_bits(image, again)) is None:
        return loaded(image)
    else:
        values = colors
    levels = ((np.arange(top + 1) * 510 + top) // (2 * top)).astype(np.uint8)[values]  # rounded
    key = image.info.get("transparency")
    if key is not None:  # one color is transparent
        opaque = (values != np.asarray(key, dtype=np.uint16)).any(axis=-1, keepdims=True)
        levels = np.concatenate([levels, opaque * np.uint8(255)], axis=-1)
    return Image.fromarray(levels.squeeze(-1) if levels.shape[-1] == 1 else levels)


def _sixteen_bits(image: Any, again: Any) -> np.ndarray | None:
    """Colors of an image that has been opened twice, uint16 [H, W, C]; None where Pillow cannot give all bits."""
    layouts = {_layout(tile) for tile in image.tile}
    if layouts == {"LA;16B"}:  # of four bytes per pixel, which is RGBA, too
        _read_as(image, "RGBA")
        parts = np.asarray(loaded(image)).astype(np.uint16)
        return parts[..., 0::2] << 8 | parts[..., 1::2]
    [layout] = layouts if len(layouts) == 1 else [""]
    order = layout[-4:]
    if layout not in (f"RGB{order}", f"RGBA{order}") or order not in OTHER_ENDS:
        return None
    _read_as(again, layout.replace(order, OTHER_ENDS[order]))
    first, second = (np.asarray(loaded(half)).astype(np.uint16) for half in (image, again))
    return first << 8 | second


def _layout(tile: Any) -> str:
    arguments = tile[3]
    return arguments if isinstance(arguments, str) else str(arguments[0])


def _read_as(image: Any, layout: str) -> None:
    """Let Pillow take the bytes of an image for pixels of this layout."""
    tiles = [(*tile[:3], layout if isinstance(tile[3], str) else (layout, *tile[3][1:])) for tile in image.tile]
    make = getattr(type(image.tile[0]), "_make", tuple)  # a tuple with names since Pillow 11.1
    image.tile = [make(tile) for tile in tiles]
