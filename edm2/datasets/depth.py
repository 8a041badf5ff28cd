"""Gray images of 9 to 16 bits scaled to 8: level v of 0 to 2^bits - 1 becomes round(255 v / (2^bits - 1))."""

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from edm2.training.data.archive.decoding import loaded

MOST_BITS = 16
"""Bits per channel at most: numbers of 32 bits, most of them measurements, have no white to scale to."""


def eight_bits(image: Image.Image, bits: int) -> Image.Image:
    """Decode an image of 9 to 16 bits per channel."""
    top = (1 << bits) - 1
    if not image.mode.startswith("I;16") and not (image.format == "PNG" and image.mode == "I"):  # before Pillow 11.3
        if image.mode in ("I", "F"):
            raise ValueError("numbers with a sign or fractions are no levels of gray; convert it to 16 or 8 bits")
        raise ValueError("colors of more than 8 bits per channel are not supported; convert it to 8 bits per channel")
    values = np.asarray(loaded(image)).astype(np.uint16)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:  # 0 is white
        values = top - values
    levels = ((np.arange(top + 1) * 510 + top) // (2 * top)).astype(np.uint8)[values]  # rounded
    key = image.info.get("transparency")
    if key is None:
        return Image.fromarray(levels)
    opaque = np.uint8(255) * (values != np.uint16(key))  # one level is transparent
    return Image.fromarray(np.stack([levels, opaque.astype(np.uint8)], axis=-1))
