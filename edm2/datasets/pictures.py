"""Pictures as people have them: photos on their side, icons on transparent ground, scans of several pages.

`PictureReader` makes RGB images of them, as a viewer shows them, for conversion to a dataset.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

from PIL import Image, ImageColor, ImageOps

from edm2.datasets.depth import MOST_BITS, eight_bits
from edm2.training.data.archive.decoding import CHANNELS, FORMATS, bits_per_channel, loaded, open_image, read_decoded
from edm2.training.data.archive.files import CONVERTIBLE, HEIF_SUFFIXES, Files

EXIF = ("apply", "ignore")
"""Choices for the orientation that a camera stored: turn the image, or leave it as it lies."""

DROP = "drop"
"""Background that leaves pixels as they are under their transparency, whatever color that is."""


ORIENTATION = 0x0112
"""Number of the entry of EXIF data."""


@dataclass(frozen=True)
class Picture:
    """An RGB image, and what was done to it."""

    image: Image.Image
    turned: bool
    """True if its EXIF orientation was applied."""
    composited: bool
    """True if it was transparent."""
    further_pages: int
    """Pages of a TIFF file beside the first, which are left out."""
    rounded: bool
    """True if it was gray of more than 8 bits."""


@dataclass(frozen=True)
class PictureReader:
    """Reader of images of all formats that conversion takes."""

    exif: str = "apply"
    background: str = "white"
    """Color under transparent pixels: white, black, #rrggbb; or `DROP`, as the paper's tools do."""

    def __post_init__(self) -> None:
        if self.exif not in EXIF:
            raise ValueError(f"exif={self.exif!r} is unknown; choose {' or '.join(EXIF)}")
        if self.background not in ("white", "black", DROP) and not re.fullmatch("#[0-9a-fA-F]{6}", self.background):
            raise ValueError(f"{self.background!r} is no background; write white, black, #rrggbb or {DROP}")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files that can be read here."""
        return CONVERTIBLE if _reads_heif() else tuple(s for s in CONVERTIBLE if s not in HEIF_SUFFIXES)

    @property
    def identity(self) -> list[object]:
        """JSON of the settings that decide the pixels."""
        return [self.exif, self.background, *self.suffixes]

    def __call__(self, files: Files, name: str) -> Picture:
        """Read one picture; gray is repeated, no color profile is kept. Raises DatasetError as `read_decoded`."""
        return read_decoded(files, name, self._picture)

    def _picture(self, data: bytes) -> Picture:
        opened = open_image(data, _formats(), MOST_BITS)
        bits = bits_per_channel(data, opened)
        image = loaded(opened) if bits <= 8 else eight_bits(opened, bits)
        further_pages = getattr(opened, "n_frames", 1) - 1 if opened.format == "TIFF" else 0
        orientation = _orientation(opened) if self.exif == "apply" else 1
        transparent = self.background != DROP and image.has_transparency_data
        rgb = self._on_background(image) if transparent else _rgb(image)
        rgb.info = {}
        if orientation != 1:
            rgb.getexif()[ORIENTATION] = orientation
            rgb = ImageOps.exif_transpose(rgb)
            rgb.info = {}
        return Picture(rgb, orientation != 1, transparent, further_pages, bits > 8)

    def _on_background(self, image: Image.Image) -> Image.Image:
        layers = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", image.size, ImageColor.getrgb(self.background))
        canvas.paste(layers, mask=layers.getchannel("A"))
        return canvas


def _orientation(image: Image.Image) -> int:
    """Orientation from 1 (upright) to 8; 1 if there is none, or the EXIF data are damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged bytes can raise almost anything
        return 1
    return orientation if orientation in range(2, 9) else 1


def _rgb(image: Image.Image) -> Image.Image:
    """RGB, with transparency dropped without blending."""
    known = image if image.mode in CHANNELS else image.convert("RGB")
    return known if known.mode == "RGB" else known.convert("RGB")


@lru_cache(maxsize=1)
def _reads_heif() -> bool:
    return find_spec("pillow_heif") is not None


@lru_cache(maxsize=1)
def _formats() -> Sequence[str]:
    """Formats that can be read here, of those whose decoders are safe."""
    if _reads_heif():
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return [name for name in (*FORMATS, "AVIF", "HEIF") if name in Image.OPEN]
