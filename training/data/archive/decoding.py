"""Bytes of an image or NPY array -> what it shows, whatever the bytes are: damage is one error that names the file."""

import io
import math
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE as BITS_PER_SAMPLE, TiffImageFile

from edm2.training.data.archive.files import Files, suffix_of, unreadable

Decoded = TypeVar("Decoded")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats of images, whatever the file's name: for some of the others (PostScript) Pillow starts another program."""

CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
"""Channels of images of Pillow's modes; in other modes they are converted to RGB."""

HEAD_BYTES = 1 << 16
"""Bytes at the beginning of a file that hold the header of most images."""

PNG = b"\x89PNG\r\n\x1a\n"
"""First bytes of a PNG file."""


def read_array(files: Files, name: str) -> np.ndarray:
    """Read one image as it is stored: pixels uint8 [C, H, W], or moments float32 or float16 [2 C, H, W], mean then std.

    Raises:
        StorageError: The storage gives no answer.
        DatasetError: Missing, damaged, or neither of the two.
    """
    try:
        data = files.read(name)
        if name.lower().endswith(".npy"):
            return _decode_npy(data)
        return np.atleast_3d(np.asarray(decode_image(data))).transpose(2, 0, 1)  # [H, W, C] -> [C, H, W]
    except Exception as error:  # damaged or hostile bytes make ZIP, image and NPY readers raise almost anything
        raise unreadable(f"{files.path}/{name}", error) from error


def read_condition(files: Files, name: str) -> np.ndarray:
    """Read one condition of an image: pixels uint8 [C, H, W], or an array of 0 to 3 dimensions, float32.

    Raises:
        StorageError: The storage gives no answer.
        DatasetError: Missing, damaged, or no finite numbers.
    """
    if suffix_of(name) != ".npy":
        return np.array(read_array(files, name))  # a copy that may be written to, as torch asks for
    try:
        array = _parse_npy(files.read(name))
        if array.ndim > 3 or not array.size:
            raise ValueError(f"array of shape {list(array.shape)}; expected numbers in up to 3 dimensions")
        values = np.array(array, dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError("holds NaN or infinity; store finite numbers")
        return values
    except Exception as error:  # as above
        raise unreadable(f"{files.path}/{name}", error) from error


def read_decoded(files: Files, name: str, decode: Callable[[bytes], Decoded]) -> Decoded:
    """Read one image through a decoder of the caller's own, which may raise anything.

    Raises:
        StorageError: The storage gives no answer.
        DatasetError: Missing, damaged, or no such image.
    """
    try:
        return read_png_of_pixels_too(decode, files.read(name))
    except Exception as error:  # as above
        raise unreadable(f"{files.path}/{name}", error) from error


def decode_image(data: bytes) -> Image.Image:
    """Image with 1 to 4 channels of 8 bits: gray, gray with alpha, RGB or RGBA. Raises anything if it is damaged."""
    image = read_png_of_pixels_too(lambda data: loaded(open_image(data)), data)
    return image if image.mode in CHANNELS else image.convert("RGB")


def read_format(files: Files, name: str, head_bytes: int = HEAD_BYTES) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an image or array, as `read_array` returns it, from its header alone.

    Args:
        head_bytes: Bytes to look for it in, before the whole file is read.

    Raises:
        StorageError, DatasetError: As `read_array`; damage behind the header is not noticed.
    """
    header = npy_format if suffix_of(name) == ".npy" else _image_format
    try:
        try:
            return header(files.head(name, head_bytes))
        except Exception:  # a header that is longer, such as one with a large color profile
            return header(files.read(name))
    except Exception as error:
        raise unreadable(f"{files.path}/{name}", error) from error


def _image_format(data: bytes) -> tuple[tuple[int, ...], np.dtype]:
    image = read_png_of_pixels_too(open_image, data)
    return (CHANNELS.get(image.mode, 3), image.height, image.width), np.dtype(np.uint8)


def npy_format(data: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an NPY array from its first bytes."""
    shape, _, dtype = _parse_npy_header(data[: _npy_header_size(data)])
    return shape, dtype


def read_png_of_pixels_too(read: Callable[[bytes], Decoded], data: bytes) -> Decoded:
    """Call `read`, and once more without the other chunks if it refuses a PNG."""
    try:
        return read(data)
    except Exception:
        bare = _png_of_pixels(data) if data.startswith(PNG) else data
        if bare == data:
            raise
        return read(bare)


def loaded(image: Image.Image) -> Image.Image:
    """The image itself, with its pixels."""
    image.load()
    return image


def open_image(data: bytes, formats: Sequence[str] = FORMATS, most_bits: int = 8) -> Image.Image:
    """Read the header of an image. Raises ValueError if it has more bits per channel than this, or is no image."""
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(formats))
    except UnidentifiedImageError:
        raise ValueError("not an image, or damaged") from None  # Pillow's own text shows the address of a buffer
    if bits_per_channel(data, image) > most_bits:
        remedy = "edm2 dataset convert makes 8 of 16 in gray" if most_bits == 8 else "convert it to 16 or 8"
        raise ValueError(f"more than {most_bits} bits per channel are not supported; {remedy}")
    return image


def bits_per_channel(data: bytes, image: Image.Image) -> int:
    """Bits as stored: Pillow silently drops the lower half of 16-bit colours."""
    if data.startswith(PNG):
        return data[24]  # in the header chunk
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
    return 32 if image.mode[0] in "IF" else 8


def _png_of_pixels(data: bytes) -> bytes:
    """PNG without whole chunks that are not about pixels.

    Pillow unpacks color profiles and texts, and refuses those of more than a megabyte. A damaged chunk stays: it may be
    one of pixels whose name is wrong.
    """
    kept, start = [data[:8]], 8
    while start < len(data):
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 12 + length
        is_whole = zlib.crc32(data[start + 4 : end - 4]).to_bytes(4, "big") == data[end - 4 : end]
        ancillary = kind[:1].islower() and kind not in (b"tRNS", b"eXIf")
        if not (ancillary and is_whole):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _decode_npy(data: bytes) -> np.ndarray:
    array = _parse_npy(data)
    if array.dtype not in (np.uint8, np.float32, np.float16) or array.ndim != 3 or not array.size:
        raise ValueError(
            f"{array.dtype} array of shape {list(array.shape)}; expected uint8 pixels or moments in float32 or float16 "
            "[C, H, W]"
        )
    if array.dtype != np.uint8:
        _check_moments(array)
    elif len(array) > 4:
        raise ValueError(f"pixels of shape {list(array.shape)}; expected [C, H, W] with 1 to 4 channels")
    return array


def _parse_npy(data: bytes) -> np.ndarray:
    start = _npy_header_size(data)
    shape, fortran_order, dtype = _parse_npy_header(data[:start])
    if dtype.kind not in "biuf":
        raise ValueError(f"{dtype} array of shape {list(shape)}; expected numbers")
    values = np.frombuffer(data, dtype, math.prod(shape), start)
    return values.reshape(shape, order="F" if fortran_order else "C")


def _npy_header_size(data: bytes) -> int:
    version, _ = np.lib.format.read_magic(io.BytesIO(data))
    count = 2 if version == 1 else 4  # bytes of the number that tells the length of the rest
    return 8 + count + int.from_bytes(data[8 : 8 + count], "little")


@lru_cache(maxsize=8)
def _parse_npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order, and dtype. Cached: parsing takes longer than the rest, and it is always the same."""
    file = io.BytesIO(header)
    version, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == 1 else np.lib.format.read_array_header_2_0
    return read(file)


def _check_moments(array: np.ndarray) -> None:
    if array.shape[0] % 2:
        raise ValueError(f"moments of shape {list(array.shape)}; expected as many means as standard deviations")
    if not np.isfinite(array).all():
        raise ValueError("moments hold NaN or infinity; encode the image again")
    if (array[array.shape[0] // 2 :] < 0).any():
        raise ValueError("negative standard deviations in the second half of the channels; store mean, then std")
