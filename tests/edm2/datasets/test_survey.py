"""What differs among images is found from their headers, before training meets it."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dataset_files import encoded, npy, write_folder, write_zip
from PIL import Image, PngImagePlugin

from edm2.datasets.survey import survey
from edm2.training.data.archive import decoding
from edm2.training.data.archive.decoding import read_array, read_format
from edm2.training.data.archive.files import FolderFiles
from edm2.training.data.archive.zip_files import ZipFiles

BOTH = pytest.mark.parametrize("write", [write_folder, write_zip], ids=["folder", "zip"])


def photo(width: int, height: int, mode: str = "RGB", kind: str = "PNG", **options: object) -> bytes:
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, kind, **options)
    return buffer.getvalue()


def with_large_header() -> bytes:
    """A PNG whose profile alone is longer than what is read first, and one that Pillow refuses to unpack."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("workflow", "x" * 2_000_000, zip=True)
    return photo(5, 4, icc_profile=np.random.default_rng(0).bytes(100_000), pnginfo=text)


KINDS = {
    "1.png": photo(30, 20),
    "2.png": photo(3, 4, "L"),
    "3.png": encoded(Image.new("P", (6, 5))),
    "4.jpg": photo(50, 40, kind="JPEG"),
    "5.webp": photo(9, 8, kind="WEBP"),
    "6.bmp": photo(7, 6, kind="BMP"),
    "7.npy": npy(np.zeros((8, 2, 3), np.float16)),
    "8.png": with_large_header(),
    "9.png": photo(2, 2, "RGBA"),
}


@pytest.mark.parametrize("method", ["folder", "stored", "deflated"])
@pytest.mark.parametrize("head", [1 << 16, 60])
def test_headers_say_what_the_images_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, head: int):
    """Also where a header is longer than the bytes that are read first."""
    monkeypatch.setattr(decoding, "HEAD_BYTES", head)
    if method == "folder":
        files = FolderFiles(write_folder(tmp_path / "data", KINDS))
    else:
        path = write_zip(tmp_path / "data.zip", KINDS)
        if method == "deflated":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
                for name, data in KINDS.items():
                    file.writestr(name, data)
        files = ZipFiles(path)
    for name in KINDS:
        array = read_array(files, name)
        assert read_format(files, name) == (array.shape, array.dtype), name


def test_only_the_beginning_of_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_folder(tmp_path / "data", {"1.png": photo(400, 300)})
    monkeypatch.setattr(FolderFiles, "read", None)
    assert read_format(FolderFiles(path), "1.png") == ((3, 300, 400), np.uint8)


@BOTH
def test_images_that_are_alike(tmp_path: Path, write):
    found = survey(write(tmp_path / "data", {f"{k}.png": photo(8, 8) for k in range(20)}))
    assert (found.describe(), found.notes("data"), found.unreadable) == ([], [], [])


@BOTH
def test_images_that_differ(tmp_path: Path, write):
    """A small run is suggested, not one at the size of the middle image."""
    members = {f"{k}.png": photo(240 + k, 300 - k) for k in range(10)}
    members |= {"x.png": photo(240, 300, "L"), "y.png": photo(16, 16), "z.png": b"nothing"}
    reports: list[tuple[int, int]] = []
    found = survey(write(tmp_path / "data", members), lambda *report: reports.append(report))
    assert found.describe() == [
        ("sizes", "11: height 16 to 300 (median 296), width 16 to 249 (median 244)"),
        ("channels", "3 (uint8) in 11, 1 (uint8) in 1"),
    ]
    alike, unusable = found.notes("my/photos")
    assert alike.endswith("edm2 dataset convert my/photos photos-64.zip --resolution 64")
    assert "1 images cannot be used, the first is" in unusable
    assert "z.png" in unusable
    assert reports[-1] == (13, 13)


@pytest.mark.parametrize(("side", "size"), [(16, 32), (63, 32), (64, 64), (900, 64)])
def test_a_sensible_size_is_suggested(tmp_path: Path, side: int, size: int):
    found = survey(write_folder(tmp_path / "data", {"1.png": photo(side, side + 9), "2.png": photo(side, side)}))
    assert found.size_to_convert_to() == size
