"""Pictures as cameras, scanners and designers store them come out as a viewer shows them."""

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from dataset_files import deep_png, encoded, png_chunk, tiff, write_folder
from PIL import Image, ImageOps

from edm2.datasets.pictures import ORIENTATION, Picture, PictureReader
from edm2.training import DatasetError
from edm2.training.data.archive.files import HEIF_SUFFIXES, FolderFiles


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


@pytest.mark.parametrize("bits", [8, 10])
def test_heic_as_phones_write_it(tmp_path: Path, bits: int):
    """On their side, with the turn in the file's own form, which libheif applies, and in EXIF, which then must not."""
    pillow_heif = pytest.importorskip("pillow_heif")
    exif, buffer, pixels = Image.Exif(), io.BytesIO(), four_colors().resize((128, 64), Image.Resampling.NEAREST)
    exif[ORIENTATION] = 6
    deep = (np.asarray(pixels).astype(np.uint16) * 257).tobytes()
    image = pillow_heif.from_pillow(pixels) if bits == 8 else pillow_heif.from_bytes("RGB;16", pixels.size, deep)
    image.info["exif"] = exif.tobytes()
    image.save(buffer, quality=95)
    picture = read(tmp_path, buffer.getvalue())
    upright = pixels.transpose(Image.Transpose.ROTATE_270)
    assert picture.image.size == upright.size
    assert np.abs(np.array(corners(picture.image)) - corners(upright)).max() <= 4


def test_avif_on_its_side(tmp_path: Path):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    four_colors().save(buffer, "AVIF", exif=exif, quality=100, subsampling="4:4:4")
    picture, upright = read(tmp_path, buffer.getvalue()), four_colors().transpose(Image.Transpose.ROTATE_270)
    assert picture.turned
    assert np.abs(np.array(corners(picture.image)) - corners(upright)).max() <= 4


# ----------------------------------------------------------------------------------------------------------------------
# More than 8 bits per channel


def deep_levels(channels: int) -> np.ndarray:
    """Levels of 16 bits, half of them around those at which rounding goes the other way."""
    random = np.random.default_rng(channels)
    levels = random.integers(0, 1 << 16, (20, 8, channels))
    between = 257 * random.integers(0, 255, (10, 8, channels)) + 128
    levels[:10] = between + random.integers(0, 2, between.shape)
    return levels.astype(np.uint16)


def assert_rounded(picture: Picture, levels: np.ndarray) -> None:
    """Level v of 65,535 is round(v / 257) of 255."""
    assert np.array_equal(np.asarray(picture.image), np.rint(levels.repeat(3, axis=-1) / 257))


def test_sixteen_bits_of_gray_png_are_rounded_to_eight(tmp_path: Path):
    levels = deep_levels(1)
    assert_rounded(read(tmp_path, deep_png(levels)), levels)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_gray_tiff_are_rounded_to_eight(tmp_path: Path, order: str, deflated: bool):
    levels = deep_levels(1)
    assert_rounded(read(tmp_path, tiff(levels, order, deflated)), levels)


@pytest.mark.parametrize("channels", [3, 4])
def test_colors_of_sixteen_bits_are_named(tmp_path: Path, channels: int):
    """Pillow would drop the lower half of their bits in silence."""
    levels = deep_levels(channels)
    for data in (deep_png(levels), tiff(levels), tiff(levels, ">")):
        with pytest.raises(DatasetError, match="colors of more than 8 bits per channel are not supported; convert it"):
            read(tmp_path, data)


def test_gray_whose_zero_is_white(tmp_path: Path):
    levels = deep_levels(1)
    assert_rounded(read(tmp_path, tiff(levels, white=0)), 65535 - levels)


def test_one_transparent_level_of_sixteen_bits(tmp_path: Path):
    """Exactly that one: a level that differs in the lower byte is opaque."""
    levels = np.zeros((2, 2, 1), dtype=np.uint16)
    levels[0, 0], levels[1, 1] = 7, 8
    picture = read(tmp_path, deep_png(levels, png_chunk(b"tRNS", np.array([7], dtype=">u2").tobytes())))
    assert picture.composited
    assert corners(picture.image) == [(255,) * 3, *[(0,) * 3] * 3]


@pytest.mark.parametrize("kind", ["i2", "i4", "u4", "f4"])
def test_numbers_that_are_no_levels_are_refused(tmp_path: Path, kind: str):
    with pytest.raises(DatasetError, match=r"are no levels of gray|more than 16 bits per channel"):
        read(tmp_path, tiff(np.ones((4, 4, 1), dtype=kind)))
