"""The way from pictures through latents to guided samples, on the command line."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY, succeed
from PIL import Image

EMOJI = Path(os.environ.get("EDM2_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "emoji64.zip"


def draw_shapes(folder: Path) -> Path:
    """Discs and squares in many colours, one folder each; of several sizes, as people's pictures are."""
    random = np.random.default_rng(0)
    for i in range(96):
        height, width = random.integers(64, 100, 2)
        y, x = np.ogrid[:height, :width]
        distance = (
            np.maximum(abs(y - height / 2), abs(x - width / 2)) if i % 2 else np.hypot(y - height / 2, x - width / 2)
        )
        pixels = np.where(distance[..., None] < 25, random.integers(0, 200, 3), 255).astype(np.uint8)
        path = folder / ("square" if i % 2 else "disc") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module", params=["shapes", "emoji"])
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shapes, which a lone clone has too, and real pictures where there are any."""
    if request.param == "shapes":
        return draw_shapes(tmp_path_factory.mktemp("shapes"))
    if not EMOJI.is_file():
        pytest.skip(f"no pictures at {EMOJI}; set EDM2_DATA to the folder of emoji64.zip")
    return EMOJI


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small autoencoder of the kind and the shape that the paper uses: eight pixels a latent, four channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    widths = (16, 16, 32, 32)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=8,
    )
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_pictures_to_latents_to_guided_pictures(
    tmp_path: Path, pictures: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    succeed("dataset", "convert", pictures, "pixels.zip", "--resolution", 64, "--max-images", 96)
    succeed("dataset", "encode", "pixels.zip", "latents.zip", "--vae", vae, "--dtype", "fp16")
    described = succeed("dataset", "info", "latents.zip")
    assert "96" in described
    assert "8x8, 8 channels, moments" in described
    assert str(vae) in described

    plan = ("--data", "latents.zip", "--duration", 1024, *TINY, "--label-dropout", 0.1, "--stratified-noise")
    assert "scaled to standard deviation 0.5" in succeed("train", *plan, "--out", "run")
    succeed("reconstruct", "run", "--std", "0.1,0.2")
    long, short = sorted(Path("run/reconstructed").iterdir(), reverse=True)

    draw = ("generate", short, "--seeds", "0-5", "--steps", 6)
    succeed(*draw, "--out", "plain")
    guided = ("--guidance", 3, "--interval", "0.1,10")
    succeed(*draw, *guided, "--unlabelled-guide", "--out", "classifier-free")
    succeed(*draw, *guided, "--guide", long, "--out", "autoguided", "--grid", "grid.png")

    name = "000003.png"
    plain = pixels(Path("plain") / name)
    assert plain.shape == (64, 64, 3)
    assert plain.std() > 0
    for folder in ("classifier-free", "autoguided"):
        assert abs(pixels(Path(folder) / name) - plain).max() > 0, "guidance changed nothing"
    assert pixels(Path("grid.png")).shape[2] == 3
