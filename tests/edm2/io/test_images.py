"""Pictures arrive on disk as they are, or not at all."""

import numpy as np
import pytest
import torch
from PIL import Image

from edm2.io.images import image_grid, save_grid, save_png


def picture(channels: int, height: int = 5, width: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), generator=generator).to(torch.uint8)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("name", ["image.png", "image.jpg"])
def test_png_gives_back_every_pixel(tmp_path, channels, mode, name):
    """The suffix does not decide the format."""
    pixels, path = picture(channels), tmp_path / "deep" / "folder" / name
    save_png(pixels, path)
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", mode, (7, 5))
        read = np.asarray(image).reshape(5, 7, channels)
    assert np.array_equal(read, pixels.permute(1, 2, 0).numpy())
    assert [file.name for file in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("pixels", [picture(5), picture(3)[:0], picture(3).float()], ids=["five", "none", "float"])
def test_other_pictures_are_refused_and_leave_nothing(tmp_path, pixels):
    with pytest.raises(ValueError, match=r"image\.png") as error:
        save_png(pixels, tmp_path / "image.png")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="at least one image"):
        save_grid(picture(3)[None][:0], tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_picture_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    save_png(picture(3), path)
    before = path.read_bytes()

    def fail(self: Image.Image, target, **options) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(picture(3, seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_grid_is_filled_row_by_row_and_about_square():
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 2, 3)
    grid = image_grid(images, columns=4)
    assert grid.shape == (1, 4, 12)
    assert grid[0, ::2, ::3].tolist() == [[0, 1, 2, 3], [4, 5, 255, 255]]  # white where images have run out
    for count, shape in ((1, (1, 1)), (4, (2, 2)), (5, (2, 3)), (7, (3, 3)), (16, (4, 4))):
        assert image_grid(torch.zeros(count, 3, 1, 1, dtype=torch.uint8)).shape == (3, *shape)

    images = torch.stack([picture(3, seed=seed) for seed in range(4)])
    grid = image_grid(images, columns=2, scale=2, gap=3)
    assert grid.shape == (3, 2 * 10 + 3, 2 * 14 + 3)
    assert torch.equal(grid[:, 13::2, 17::2], images[3])
    assert torch.equal(grid[:, 14::2, 18::2], images[3])
    assert (grid[:, 10:13] == 255).all()
    assert (grid[:, :, 14:17] == 255).all()


def enlarged(image: torch.Tensor, scale: int) -> torch.Tensor:
    """[1, H, W] -> [scale H, scale W]."""
    return image[0].repeat_interleave(scale, 0).repeat_interleave(scale, 1)


@pytest.mark.parametrize("side", [4, 8, 28, 32, 64, 100])
def test_a_grid_in_a_file_shows_every_pixel(tmp_path, side):
    """Small images enlarged by a whole number so that they can be seen, larger ones as they are."""
    images = torch.stack([picture(1, side, side, seed) for seed in range(4)])
    save_grid(images, tmp_path / "grid.png", columns=2)
    with Image.open(tmp_path / "grid.png") as image:
        read = torch.from_numpy(np.array(image))
    [scale] = [k for k in range(1, 65) if torch.equal(read[: k * side, : k * side], enlarged(images[0], k))]
    shown = scale * side
    assert 32 <= shown <= 100
    assert torch.equal(read[-shown:, -shown:], enlarged(images[3], scale))
