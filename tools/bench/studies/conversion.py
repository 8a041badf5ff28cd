"""Conversion of images, against Pillow alone: `python -m edm2.tools.bench.studies.conversion`.

Both take the same images through the same decoder, transform and encoder, in one process and one thread. Pillow's loop
keeps nothing; the conversion checks every image, and leaves a finished dataset on disk. They take turns, image by
thousand images, so that a busy machine slows down both; the ratio of a turn is Pillow's time by the conversion's.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
from PIL import Image

from edm2.datasets.conversion import CenterCrop, CenterCropDhariwal, Resize, Transform, convert


@dataclass(frozen=True)
class Case:
    """Images of one kind, and what becomes of them."""

    suffix: str
    height: int
    width: int
    transform: Transform

    def __str__(self) -> str:
        return f"{self.height}x{self.width} {self.suffix[1:].upper()}, {self.transform}"


CASES = (
    Case(".jpg", 375, 500, CenterCropDhariwal(64, 64)),
    Case(".jpg", 375, 500, CenterCropDhariwal(256, 256)),
    Case(".jpg", 375, 500, CenterCrop(256, 256)),
    Case(".jpg", 375, 500, Resize(64, 96)),
    Case(".png", 96, 96, CenterCropDhariwal(64, 64)),
)
"""375x500 is the usual size in ImageNet; small PNG files are the hardest, as Pillow is done with them soonest."""


@click.command()
@click.option("--images", default=1000, show_default=True, help="Images of each kind.")
@click.option("--repeats", default=7, show_default=True, help="Turns; medians are shown.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; default: the folder for such things.")
def main(images: int, repeats: int, folder: Path | None) -> None:
    """Compare conversion by one worker with a loop of Pillow's functions."""
    for case in CASES:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            click.echo(f"{case}: {_compare(case, Path(place), images, repeats)}")


def _compare(case: Case, place: Path, images: int, repeats: int) -> str:
    """Times per image, and images per second in relation to Pillow's."""
    source = place / "images"
    _write_images(case, source, images)
    paths = sorted(source.iterdir())
    turns = []
    for turn in range(repeats):
        bare = _measure(lambda: _convert_by_pillow(paths, case.transform))
        ours = _measure(partial(convert, source, place / f"{turn}.zip", case.transform))
        (place / f"{turn}.zip").unlink()
        turns.append((bare.wall, ours.wall, bare.wall / ours.wall, bare.processor / ours.processor))
    bare_time, our_time, ratio, processor_ratio = (statistics.median(column) for column in zip(*turns, strict=True))
    return (
        f"Pillow {1e3 * bare_time / images:.2f} ms, conversion {1e3 * our_time / images:.2f} ms per image, "
        f"ratio {ratio:.2f} (of processor time {processor_ratio:.2f})"
    )


@dataclass(frozen=True)
class Times:
    """Seconds that something took; on a busy machine those of the processor say more."""

    wall: float
    processor: float


def _measure(work: Callable[[], object]) -> Times:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Times(time.perf_counter() - wall, time.process_time() - processor)


def _convert_by_pillow(paths: list[Path], transform: Transform) -> None:
    for path in paths:
        image = transform(Image.open(path).convert("RGB"))
        assert image is not None  # none is too small
        image.save(io.BytesIO(), format="PNG", compress_level=0)


def _write_images(case: Case, folder: Path, count: int) -> None:
    """Sixteen different images of clouds with some noise, `count` files."""
    folder.mkdir()
    random = np.random.default_rng(0)
    contents = [_encode_cloud(case, random) for _ in range(16)]
    for i in range(count):
        (folder / f"{i:06}{case.suffix}").write_bytes(contents[i % 16])


def _encode_cloud(case: Case, random: np.random.Generator) -> bytes:
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    cloud = np.asarray(coarse.resize((case.width, case.height), Image.Resampling.BICUBIC), dtype=np.float64)
    noisy = (cloud + random.normal(scale=8, size=cloud.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, format={".jpg": "JPEG", ".png": "PNG"}[case.suffix], **_quality(case))
    return buffer.getvalue()


def _quality(case: Case) -> dict[str, int]:
    return {"quality": 90} if case.suffix == ".jpg" else {}


if __name__ == "__main__":
    main()
