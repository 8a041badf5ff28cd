"""Conversion of images, against Pillow alone: `python -m edm2.tools.bench.studies.conversion`.

Both take the same images through the same decoder, transform and encoder, in one process and one thread. Pillow's loop
keeps nothing; the conversion checks every image, and leaves a finished dataset on disk. They take turns; the ratio of a
turn is Pillow's time over the conversion's.
"""

import io
import tempfile
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from edm2.datasets.conversion import CenterCrop, CenterCropDhariwal, Resize, Transform, convert
from edm2.tools.bench.studies.common import medians
from edm2.tools.bench.timing import Clock

JPEG, PNG = {"format": "JPEG", "quality": 90}, {"format": "PNG"}

CASES = (
    (JPEG, 375, 500, CenterCropDhariwal(64, 64)),
    (JPEG, 375, 500, CenterCropDhariwal(256, 256)),
    (JPEG, 375, 500, CenterCrop(256, 256)),
    (JPEG, 375, 500, Resize(64, 96)),
    (PNG, 96, 96, CenterCropDhariwal(64, 64)),
)
"""Encoder, height, width, transform. 375x500 is the usual size in ImageNet; small PNG files are the hardest, as Pillow
is done with them soonest."""


@click.command()
@click.option("--images", default=1000, show_default=True, help="Images of each kind.")
@click.option("--repeats", default=7, show_default=True, help="Turns; medians are shown.")
def main(images: int, repeats: int) -> None:
    """Compare conversion by one worker with a loop of Pillow's functions."""
    clock = Clock(torch.device("cpu"), repeats, warmup=0)
    for encoder, height, width, transform in CASES:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "images"), Path(folder, "converted.zip")
            write_images(source, images, encoder, height, width)
            bare, ours = compare(clock, source, target, transform)
        ratios = [(b.wall / o.wall, b.processor / o.processor) for b, o in zip(bare, ours, strict=True)]
        ratio, processor_ratio = medians(ratios)
        click.echo(
            f"{height}x{width} {encoder['format']}, {transform}: Pillow {1e3 * medians(bare)[1] / images:.2f} ms, "
            f"conversion {1e3 * medians(ours)[1] / images:.2f} ms per image, "
            f"ratio {ratio:.2f} (of processor time {processor_ratio:.2f})"
        )


def compare(clock: Clock, source: Path, target: Path, transform: Transform) -> list[list]:
    """Durations of Pillow's loop and of the conversion."""
    paths = sorted(source.iterdir())

    def by_pillow() -> None:
        for path in paths:
            transform(Image.open(path).convert("RGB")).save(io.BytesIO(), format="PNG", compress_level=0)

    def by_convert() -> None:
        target.unlink(missing_ok=True)
        convert(source, target, transform)

    return list(clock.by_turns({"Pillow": by_pillow, "conversion": by_convert}).values())


def write_images(folder: Path, count: int, encoder: dict, height: int, width: int) -> None:
    """Write `count` files of sixteen different images: clouds with some noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    contents = []
    for _ in range(16):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        cloud = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
        noisy = (cloud + random.normal(scale=8, size=cloud.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, **encoder)
        contents.append(buffer.getvalue())
    for i in range(count):
        (folder / f"{i:06}.{encoder['format'].lower()}").write_bytes(contents[i % 16])


if __name__ == "__main__":
    main()
