"""Pictures as cameras, scanners and designers store them come out as a viewer shows them."""

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from dataset_files import encoded, write_folder
from PIL import Image, ImageOps

from edm2.datasets.pictures import ORIENTATION, Picture, PictureReader
from edm2.training import DatasetError
from edm2.training.data.files import HEIF_SUFFIXES, FolderFiles


def read(tmp_path: Path, data: bytes, reader: PictureReader | None = None) -> Picture:
    """Read a picture from these bytes, under a name that says nothing of its format."""
    write_folder(tmp_path / "pictures", {"1.png": data})
    return (reader or PictureReader())(FolderFiles(tmp_path / "pictures"), "1.png")


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    return [image.getpixel((x, y)) for x in (0, image.width - 1) for y in (0, image.height - 1)]


def four_colors() -> Image.Image:
    """A wide image whose corners differ."""
    image = Image.new("RGB", (32, 16))
    for k, color in enumerate(("red", "lime", "blue", "white")):
        image.paste(color, (16 * (k % 2), 8 * (k // 2), 16 * (k % 2) + 16, 8 * (k // 2) + 8))
    return image


# ----------------------------------------------------------------------------------------------------------------------
# Orientation


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_stand_upright(tmp_path: Path, kind: str, orientation: int):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    four_colors().save(buffer, kind, exif=exif, lossless=True)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))).convert("RGB")
    picture = read(tmp_path, buffer.getvalue())
    assert picture.image.tobytes() == shown.tobytes()
    assert (picture.image.size, picture.turned) == (shown.size, orientation != 1)
    as_stored = read(tmp_path, buffer.getvalue(), PictureReader(exif="ignore"))
    assert (as_stored.image.tobytes(), as_stored.turned) == (four_colors().tobytes(), False)


def test_tiff_files_stand_upright(tmp_path: Path):
    """Pillow sees to that itself, whatever is asked for."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    four_colors().save(buffer, "TIFF", exif=exif)
    assert read(tmp_path, buffer.getvalue()).image.tobytes() == four_colors().transpose(Image.ROTATE_270).tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_data_turn_nothing(tmp_path: Path, exif: bytes):
    buffer = io.BytesIO()
    four_colors().save(buffer, "PNG", exif=exif)
    assert read(tmp_path, buffer.getvalue()).image.tobytes() == four_colors().tobytes()


# ----------------------------------------------------------------------------------------------------------------------
# Transparency


def with_palette() -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.info["transparency"] = 1
    return image


def with_transparent_color() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (1, 2, 3)).save(buffer, "PNG", transparency=(1, 2, 3))
    return buffer.getvalue()


def palette_png() -> bytes:
    buffer = io.BytesIO()
    with_palette().save(buffer, "PNG", transparency=1)
    return buffer.getvalue()


TRANSPARENT = {
    "RGBA": (encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0))), (0, 0, 0)),
    "gray": (encoded(Image.new("LA", (2, 2), (7, 0))), (7, 7, 7)),
    "palette": (palette_png(), (40, 50, 60)),
    "one color": (with_transparent_color(), (1, 2, 3)),
}


@pytest.mark.parametrize(("data", "hidden"), TRANSPARENT.values(), ids=TRANSPARENT)
@pytest.mark.parametrize(
    ("background", "color"), [("white", (255,) * 3), ("black", (0,) * 3), ("#12ab00", (18, 171, 0)), ("drop", None)]
)
def test_what_is_transparent_shows_the_background(tmp_path: Path, data: bytes, hidden, background: str, color):
    picture = read(tmp_path, data, PictureReader(background=background))
    assert picture.image.mode == "RGB"
    assert set(corners(picture.image)) == {color or hidden}
    assert picture.composited == (background != "drop")


def test_half_transparent_pixels_are_blended(tmp_path: Path):
    picture = read(tmp_path, encoded(Image.new("RGBA", (2, 2), (100, 0, 200, 128))))
    assert np.abs(np.array(corners(picture.image)[0]) - (100 + 155 / 2, 255 / 2, 200 + 55 / 2)).max() <= 1


@pytest.mark.parametrize("settings", [{"exif": "turn"}, {"background": "pink"}, {"background": "#12"}])
def test_unknown_settings(settings: dict[str, str]):
    with pytest.raises(ValueError, match=r"choose apply or ignore|write white, black, #rrggbb or drop"):
        PictureReader(**settings)


# ----------------------------------------------------------------------------------------------------------------------
# Formats


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "TIFF", "AVIF", "BMP", "WEBP"])
def test_formats(tmp_path: Path, kind: str):
    picture = read(tmp_path, encoded(Image.new("RGB", (16, 8), (200, 100, 0)), kind))
    assert picture.image.size == (16, 8)
    assert np.abs(np.asarray(picture.image, dtype=int) - (200, 100, 0)).max() <= 8


@pytest.mark.parametrize(("kind", "further"), [("TIFF", 2), ("GIF", 0)])
def test_the_first_page_or_frame_is_taken(tmp_path: Path, kind: str, further: int):
    pages = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    buffer = io.BytesIO()
    pages[0].save(buffer, kind, save_all=True, append_images=pages[1:])
    picture = read(tmp_path, buffer.getvalue())
    assert (picture.image.getpixel((0, 0)), picture.further_pages) == ((255, 0, 0), further)


def test_heic_needs_its_extra(tmp_path: Path):
    assert set(HEIF_SUFFIXES) <= set(PictureReader().suffixes) or find_spec("pillow_heif") is None


def test_more_than_eight_bits_are_refused(tmp_path: Path):
    buffer = io.BytesIO()
    Image.new("I;16", (2, 2)).save(buffer, "TIFF")
    with pytest.raises(DatasetError, match="more than 8 bits per channel"):
        read(tmp_path, buffer.getvalue())
