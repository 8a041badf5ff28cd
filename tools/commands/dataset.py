"""`edm2 dataset`: make datasets of images, and look into them."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edm2.tools.options.parsing import DEVICE, FILE, IMAGES, PNG_FILE, PRECISION, RESOLUTION

EXIF = ("apply", "ignore")

TRANSFORMS = ("center-crop-dhariwal", "center-crop", "center-crop-wide", "resize")

PIXEL_RANGES = {"0,1": (0.0, 1.0), "-1,1": (-1.0, 1.0)}

EPILOG = """\b
Examples:
  edm2 dataset convert photos/ photos-64.zip --resolution 64
  edm2 dataset show photos-64.zip --grid look.png
  edm2 dataset check photos-64.zip
  edm2 dataset stats photos-64.zip
  edm2 dataset encode photos-512.zip latents.zip
  edm2 dataset embed photos-64.zip captions.json --text-encoder openai/clip-vit-base-patch32
  edm2 dataset info photos-64.zip
"""

CONVERT_EPILOG = """\b
Examples:
  # Squares from the middle of every image, as is usual for ImageNet
  edm2 dataset convert photos/ photos-64.zip --resolution 64
\n\b
  # Whole images, stretched to 64 rows and 96 columns
  edm2 dataset convert photos.zip small.zip --resolution 64x96 --transform resize
\n\b
  # A look at what will come of it
  edm2 dataset convert photos/ try.zip --resolution 64 --max-images 100
\n\b
  # From the Hugging Face hub (pip install 'edm2[datasets]')
  edm2 dataset convert hf:AI-Lab-Makerere/beans beans-64.zip --resolution 64
  edm2 dataset convert hf:uoft-cs/cifar100 cifar.zip --resolution 32 --split test --label-column fine_label
"""

ENCODE_EPILOG = """\b
Examples:
  # Latents of the VAE of the paper, as its networks are trained on
  edm2 dataset encode imagenet-512.zip latents.zip --dtype fp16 --paper-stats
\n\b
  # On all GPUs of this machine
  torchrun --nproc-per-node gpu -m edm2 dataset encode imagenet-512.zip latents.zip
\n\b
  # By a VAE of your own that takes pixels from -1 to 1
  edm2 dataset encode photos-256.zip latents.zip --vae my-vae/ --vae-range -1,1
"""

STATS_EPILOG = """\b
Examples:
  edm2 dataset stats photos-64.zip
  edm2 dataset stats latents.zip --max-images 10000 --no-write
"""

EMBED_EPILOG = """\b
Examples:
  # Needs pip install 'edm2[text]'
  edm2 dataset embed photos-64.zip captions.json --text-encoder openai/clip-vit-base-patch32
  edm2 dataset embed photos/ titles.json --text-encoder my-encoder/ --name title
"""

CHECK_EPILOG = """\b
Examples:
  edm2 dataset check photos-64.zip
  edm2 dataset check photos/ --workers 32
"""

SHOW_EPILOG = """\b
Examples:
  edm2 dataset show photos-64.zip --grid look.png
"""

INFO_EPILOG = """\b
Examples:
  edm2 dataset info photos-64.zip
  edm2 dataset info photos/
"""


@click.group(epilog=EPILOG)
def dataset() -> None:
    """Make a dataset of images or of latents, measure one, or look into one."""


@contextmanager
def _progress(hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show progress; yields a function to be called with the number of images done and of all."""
    from edm2.tools.progress import progress_bar

    with progress_bar(hidden=hidden) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.set_description("finishing")

        yield report


def _print_notes(notes: Iterable[str]) -> None:
    from edm2.post_hoc_ema.files import plain_line

    for note in notes:  # names of files and classes are untrusted
        click.echo(plain_line(f"Warning: {note}"))


@dataset.command(epilog=CONVERT_EPILOG, short_help="Images of any size to a dataset of one size.")
@click.argument("source")
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
@click.option(
    "--exif",
    type=click.Choice(EXIF),
    default=EXIF[0],
    show_default=True,
    help="Orientation that a camera stored: photos upright, or as they lie (as the paper's tools do).",
)
@click.option(
    "--background",
    default="white",
    show_default=True,
    help="Under transparent pixels: white, black or #rrggbb; drop: whatever color is hidden there (the paper's tools).",
)
@click.option("--skip-broken", is_flag=True, help="Leave out images that cannot be read; default: list them and stop.")
@click.option("--unlabelled", is_flag=True, help="Write no labels; images may lie in any folders.")
@click.option("--max-images", type=IMAGES, help="Only so many images, as many of each class.")
@click.option("--workers", type=click.IntRange(1), help="Processes that share the work; default: one per processor.")
@click.option("--config", help="Of hf:NAME: which variant.")
@click.option("--split", help="Of hf:NAME: which part; default: train.")
@click.option("--image-column", help="Of hf:NAME: the images; default: the only column of images.")
@click.option("--label-column", help="Of hf:NAME: the classes; default: the only column of class names; none: without.")
def convert(
    source: str,
    out: Path,
    resolution: tuple[int, int],
    transform: str,
    exif: str,
    background: str,
    skip_broken: bool,
    unlabelled: bool,
    max_images: int | None,
    workers: int | None,
    **selection: str | None,
) -> None:
    """Make OUT, a ZIP of images of one size, from the images in SOURCE, a folder, a ZIP, or hf:NAME.

    Top-level folders in SOURCE are the classes, unless it has a dataset.json. hf:NAME is a dataset on the Hugging Face
    hub, or a local copy of one. Reads PNG, JPEG, WebP, BMP, GIF (first frame), TIFF (first page), AVIF, and HEIC after
    pip install 'edm2[heic]'. At the end a table says what became of all files. Interrupted? Run the same again: it goes
    on where it was, and OUT is the same to the bit, whatever the number of workers.
    """
    from edm2.datasets import conversion
    from edm2.datasets.pictures import PictureReader
    from edm2.post_hoc_ema.files import plain_line

    try:
        with _progress() as report:
            result = conversion.convert(
                _open_source(source, selection),
                out,
                conversion.TRANSFORMS[transform](*resolution),
                max_images,
                workers or os.cpu_count() or 1,
                report,
                reader=PictureReader(exif, background),
                skip_broken=skip_broken,
                labelled=not unlabelled,
            )
    except conversion.BrokenImages as error:
        click.echo("\n".join(map(plain_line, error.lines)))
        raise
    for name, reason in result.tally.broken:
        click.echo(plain_line(f"left out: {source}/{name}: {reason}"))
    _print_notes(result.notes)
    click.echo("\n".join([*result.tally.table(), *result.tally.remarks(background)]))
    skipped = f" ({result.skipped:,} too small or broken, left out)" if result.skipped else ""
    click.echo(f"{result.images:,} images in {out}{skipped}")


def _open_source(source: str, selection: dict[str, str | None]) -> Any:
    """Source of images: a path, or an opened Hugging Face dataset."""
    given = {option: value for option, value in selection.items() if value is not None}
    if source.startswith("hf:"):
        from edm2.datasets.huggingface import open_huggingface

        return open_huggingface(source.removeprefix("hf:"), **given)
    if given:
        option = next(iter(given)).replace("_", "-")
        raise click.UsageError(f"--{option} is for Hugging Face datasets; write hf:{source} if it is one")
    return source


@dataset.command(epilog=ENCODE_EPILOG, short_help="Images of one size to latents.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--vae",
    default="stabilityai/sd-vae-ft-mse",
    show_default=True,
    help="Hub id, or a folder that diffusers saved an AutoencoderKL in.",
)
@click.option(
    "--vae-range",
    type=click.Choice(tuple(PIXEL_RANGES)),
    default="0,1",
    show_default=True,
    help="Values of black and white at the VAE's input. The paper's networks have 0,1; most VAEs are trained on -1,1.",
)
@click.option(
    "--dtype",
    type=click.Choice(("fp32", "fp16")),
    default="fp32",
    show_default=True,
    help="Storage type; fp16 halves the size.",
)
@click.option("--paper-stats", is_flag=True, help="Store the paper's mean and std, for use with its networks.")
@click.option("--max-images", type=IMAGES, help="Only so many images, as many of each class.")
@click.option("--batch", "batch_size", type=click.IntRange(1), default=8, show_default=True, help="Images at a time.")
@click.option("--precision", type=PRECISION, default="fp32", show_default=True, help="Of the VAE; others need CUDA.")
@click.option("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here.")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Threads that read images.")
def encode(
    source: Path,
    out: Path,
    vae: str,
    vae_range: str,
    dtype: str,
    paper_stats: bool,
    max_images: int | None,
    batch_size: int,
    precision: str,
    device: str | None,
    workers: int,
) -> None:
    """Make OUT, a ZIP of latents to train on, from the images of one size in SOURCE, a folder or a ZIP.

    Stored are mean and standard deviation that the VAE gives, so that training draws new latents at every visit, and
    what they are in all. Interrupted? Run the same again: it goes on where it was, with any number of processes, and
    OUT is the same to the bit. Needs twice the space of OUT on the way.
    """
    from edm2.datasets import encoding
    from edm2.datasets.moments import MomentEncoder
    from edm2.tools.reports.description import print_statistics
    from edm2.tools.run import use_device
    from edm2.training import open_dataset
    from edm2.training.distributed.processes import joined_processes

    with joined_processes() as processes:
        if processes.is_first:
            _print_notes(open_dataset(source).notes)
        encoder = MomentEncoder(vae, PIXEL_RANGES[vae_range], dtype, precision, use_device(processes, device))
        with _progress(hidden=not processes.is_first) as report:
            result = encoding.encode(
                source, out, encoder, batch_size, max_images, workers, paper_stats, processes, report
            )
    if result is not None:
        channels, height, width = result.shape
        click.echo(f"{result.images:,} images in {out}: {channels // 2} channels of {height}x{width}, {dtype}")
        print_statistics(result.statistics, levels=None)
        if paper_stats:
            click.echo(f"Stored for training: the paper's mean {result.latents['mean']}, std {result.latents['std']}")


@dataset.command(epilog=STATS_EPILOG, short_help="Measure mean, standard deviation and sigma_data.")
@click.argument("path")
@click.option("--write/--no-write", default=True, show_default=True, help="Store the values in the dataset.")
@click.option("--max-images", type=IMAGES, help="Look at so many images only, evenly spaced; default: all.")
@click.option("--workers", type=click.IntRange(1), help="Threads that share the work; default: one per processor.")
def stats(path: str, write: bool, max_images: int | None, workers: int | None) -> None:
    """Measure mean and standard deviation of the pixels or latents in PATH, and of conditions, for training to use.

    They are stored in its dataset.json. A ZIP is copied for that, so there must be room for a second one.
    """
    from edm2.datasets.conditions import entry_of, measured_conditions
    from edm2.datasets.description import check_writable, open_to_measure, store_statistics, write_entry
    from edm2.datasets.measuring import measure
    from edm2.tools.reports.description import print_statistics
    from edm2.training.data.dataset import ArchiveDataset

    dataset = open_to_measure(path)
    if write:
        check_writable(path)
    with _progress() as report:
        statistics = measure(dataset, max_images, workers or os.cpu_count() or 1, report)
    print_statistics(statistics, dataset.levels if dataset.kind == "pixels" else None)
    conditions = measured_conditions(dataset, max_images) if isinstance(dataset, ArchiveDataset) else {}
    for name, condition in conditions.items():
        click.echo(f"condition {name}: {condition}")
    if write:
        store_statistics(path, dataset, statistics)
        if conditions and isinstance(dataset, ArchiveDataset):
            write_entry(path, "conditions", entry_of(dataset, conditions))
        click.echo(f"Stored in {path}")


@dataset.command(epilog=EMBED_EPILOG, short_help="Captions to tokens, a condition to train with.")
@click.argument("path")
@click.argument("captions", type=FILE)
@click.option("--text-encoder", required=True, help="Hub id, or a folder that transformers saved it in.")
@click.option("--name", default="caption", show_default=True, help="Name of the condition.")
def embed(path: str, captions: Path, text_encoder: str, name: str) -> None:
    """Store the tokens that a text encoder makes of CAPTIONS beside the images in PATH, as a condition.

    CAPTIONS is a JSON file, {"image path": "caption", ...}. A ZIP is copied for that, so there must be room for a
    second one. The encoder's name is stored too, so that edm2 generate takes texts.
    """
    from edm2.datasets.embedding import embed as embed_captions
    from edm2.io.text_encoder import load_text_encoder

    with _progress() as report:
        condition = embed_captions(path, captions, load_text_encoder(text_encoder), name, report)
    click.echo(f"condition {name} in {path}: {condition}, by {text_encoder}")


@dataset.command(epilog=CHECK_EPILOG, short_help="Find the images that training would stop at.")
@click.argument("path")
@click.option("--workers", type=click.IntRange(1), help="Threads that share the work; default: one per processor.")
def check(path: str, workers: int | None) -> None:
    """Read every image in PATH and list the broken ones with their reason, one per line; exit code 1 if there are any.

    An image is broken if it cannot be read, or is not of the size of the first one. Training stops at such an image.
    Conditions are read too: one that misses for an image, is no number or never varies is listed.
    """
    from tqdm import tqdm

    from edm2.datasets.checking import find_broken
    from edm2.training import DatasetError, open_dataset

    with _progress() as report:
        broken = find_broken(path, workers or os.cpu_count() or 1, tqdm.write, report)
    if broken:
        raise DatasetError(
            f"{path}: {len(broken):,} broken images; replace them, or make the dataset anew without them"
        )
    dataset = open_dataset(path)
    _print_notes(dataset.notes)
    click.echo(f"{len(dataset):,} images in {path}, none broken")


@dataset.command(epilog=INFO_EPILOG, short_help="Describe a dataset and its classes.")
@click.argument("path")
def info(path: str) -> None:
    """Describe the dataset PATH, and count the images of each class. Reads the header of every image.

    Warns of what training would stop at, or what you may not expect: several sizes, files that are left out, classes
    without images.
    """
    from edm2.post_hoc_ema.files import plain_line
    from edm2.tools.reports.description import describe_classes

    with _progress() as report:
        lines = describe_classes(path, report)
    width = max(len(subject) for subject, _ in lines) + 2
    for subject, value in lines:
        click.echo(plain_line(f"{subject + ':':<{width}}{value}"))  # names of classes come from untrusted files


@dataset.command(epilog=SHOW_EPILOG, short_help="A picture of what the network will see; near-duplicates.")
@click.argument("path")
@click.option("--grid", type=PNG_FILE, required=True, help="PNG file to write: a row of images for each class.")
@click.option(
    "--max-images", type=IMAGES, default="20000", show_default=True, help="Look for near-duplicates among so many."
)
@click.option("--workers", type=click.IntRange(1), help="Threads that share the work; default: one per processor.")
def show(path: str, grid: Path, max_images: int, workers: int | None) -> None:
    """Write a picture of some images of the dataset PATH as the network will see them, with the names of the classes.

    Near-duplicates are counted too: a copy of an image that is held out says nothing of what is new to the network.
    """
    from edm2.datasets.look import ROWS, near_duplicates, save_look
    from edm2.training import open_dataset
    from edm2.training.data.dataset import evenly_spaced_indices

    dataset = open_dataset(path)
    shown = save_look(dataset, grid)
    looked_at = evenly_spaced_indices(len(dataset), max_images)
    with _progress() as report:
        twins = near_duplicates(dataset, looked_at, workers or os.cpu_count() or 1, report)
    _print_notes(dataset.notes)
    if twins:
        names = " and ".join(dataset.item_name(index) for index in reversed(twins[0]))
        counted = f"{len(twins):,} of {len(looked_at):,} images are near-duplicates of another, such as {names}"
        _print_notes([f"{counted}; a held-out copy of a trained image tests nothing: remove them"])
    else:
        click.echo(f"no near-duplicates among {len(looked_at):,} images")
    rest = f": of the first {ROWS} of {dataset.num_classes} classes" if dataset.num_classes > ROWS else ""
    click.echo(f"{shown} images of {path} in {grid}{rest}")
