"""`edm2 dataset`: make datasets of images, and look into them."""

import os
from pathlib import Path

import click

from edm2.tools.parsing import IMAGES, RESOLUTION

TRANSFORMS = ("center-crop-dhariwal", "center-crop", "center-crop-wide", "resize")

EPILOG = """\b
Examples:
  edm2 dataset convert photos/ photos-64.zip --resolution 64
  edm2 dataset info photos-64.zip
"""

CONVERT_EPILOG = """\b
Examples:
  # Squares from the middle of every image, as is usual for ImageNet
  edm2 dataset convert photos/ photos-64.zip --resolution 64
\b
  # Whole images, stretched to 64 rows and 96 columns
  edm2 dataset convert photos.zip small.zip --resolution 64x96 --transform resize
\b
  # A look at what will come of it
  edm2 dataset convert photos/ try.zip --resolution 64 --max-images 100
"""

INFO_EPILOG = """\b
Examples:
  edm2 dataset info photos-64.zip
  edm2 dataset info photos/
"""


@click.group(epilog=EPILOG)
def dataset() -> None:
    """Make a dataset of images of several sizes, or look into one."""


@dataset.command(epilog=CONVERT_EPILOG)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--resolution", type=RESOLUTION, required=True, help="Size to make: 64, or HEIGHTxWIDTH such as 64x96.")
@click.option(
    "--transform",
    type=click.Choice(TRANSFORMS),
    default=TRANSFORMS[0],
    show_default=True,
    help="dhariwal: halve, bicubic, crop to a square; center-crop: crop, then Lanczos; wide: a band between "
    "black bars, images too small for it left out; resize: stretch.",
)
@click.option("--max-images", type=IMAGES, help="Only the first so many images.")
@click.option("--workers", type=click.IntRange(1), help="Processes that share the work; default: one per processor.")
def convert(
    source: Path, out: Path, resolution: tuple[int, int], transform: str, max_images: int | None, workers: int | None
) -> None:
    """Make OUT, a ZIP of images of one size, from the images in SOURCE, a folder or a ZIP.

    Top-level folders in SOURCE are the classes, unless it has a dataset.json. Interrupted? Run the same again: it goes
    on where it was, and OUT is the same to the bit, whatever the number of workers.
    """
    from tqdm import tqdm

    from edm2 import conversion

    with tqdm(unit="img", leave=False, disable=None) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = conversion.convert(
            source,
            out,
            conversion.TRANSFORMS[transform](*resolution),
            max_images,
            workers or os.cpu_count() or 1,
            report,
        )
    skipped = f" ({result.skipped:,} too small, left out)" if result.skipped else ""
    click.echo(f"{result.images:,} images in {out}{skipped}")


@dataset.command(epilog=INFO_EPILOG)
@click.argument("path")
def info(path: str) -> None:
    """Say what the dataset PATH is, and how many images each class has."""
    from edm2.tools.description import describe_classes

    lines = describe_classes(path)
    width = max(len(subject) for subject, _ in lines) + 2
    for subject, value in lines:
        click.echo(f"{subject + ':':<{width}}{value}")
