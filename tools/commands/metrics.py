"""`edm2 metrics`: score samples against real images, and look for training images among them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.metrics.registry import DETECTOR_NAMES
from edm2.post_hoc_ema.files import check_output
from edm2.tools.options.groups import GroupedCommand, with_options
from edm2.tools.options.parsing import DEVICE, FILE, PNG_FILE
from edm2.tools.options.sampling import (
    SampleGenerator,
    SamplingOptions,
    sample_options,
    sampling_options,
    warn_of_few_evaluations,
)
from edm2.tools.options.scoring import SCORES, WEIGHTS, ScoringOptions, load_detectors

if TYPE_CHECKING:
    from edm2.metrics.neighbours import Neighbours

EPILOG = """\b
Examples:
  # Once per dataset, then for every set of samples
  edm2 metrics ref photos-64.zip photos-64.npz --detector efficientnet-lite0
  edm2 metrics calc samples/ --ref photos-64.npz
\n\b
  # Draw and score, without writing images
  edm2 metrics gen best.safetensors --ref photos-64.npz --seeds 0-9999
\n\b
  # Has it learned pictures by heart?
  edm2 metrics neighbours samples/ --data photos-64.zip --out neighbours.png
"""

REF_EPILOG = """\b
Examples:
  # Offline; the detector comes with two pip packages
  edm2 metrics ref photos-64.zip photos-64.npz --detector efficientnet-lite0
\n\b
  # For FID and FD-DINOv2, weights from files
  edm2 metrics ref imagenet-512.zip imagenet-512.npz --detector fid --detector fd_dinov2 \\
      --inception inception-2015-12-05.pt --dinov2 dinov2_vitl14.pt
\n\b
  # Features of your own: a function from uint8 [N, C, H, W] to [N, D], in features.py
  edm2 metrics ref photos-64.zip photos-64.npz --detector features:embed
"""

CALC_EPILOG = """\b
Examples:
  # All Frechet distances that the reference has statistics for
  edm2 metrics calc samples/ --ref photos-64.npz
\n\b
  # The published reference of ImageNet-512, in which nothing is executed
  edm2 metrics calc samples.npz --ref img512.pkl --metrics fid,fd_dinov2
\n\b
  # Kernel distance, precision and recall through another detector
  edm2 metrics calc samples.npz --ref photos-64.npz --metrics kid,pr --detector efficientnet-lite0

\b
On eight GPUs, put this before the command; the numbers are the same:
  torchrun --standalone --nproc-per-node 8 -m
"""

GEN_EPILOG = """\b
Examples:
  # The published way: 50,000 images; FID is compared at this number only
  edm2 metrics gen best.safetensors --ref img512.pkl --metrics fid,fd_dinov2 --seeds 0-49999
\n\b
  # Guided, with fewer images for a first look
  edm2 metrics gen best.safetensors --guide early.safetensors --guidance 1.8 --ref photos-64.npz --seeds 0-9999
\n\b
  # The network that comes with the package
  edm2 metrics ref digits digits.npz --detector pixels
  edm2 metrics gen digits8 --ref digits.npz --seeds 0-999 --steps 16

\b
On eight GPUs, put this before the command; the numbers are the same:
  torchrun --standalone --nproc-per-node 8 -m
"""

NEIGHBOURS_EPILOG = """\b
Examples:
  edm2 metrics neighbours samples/ --data photos-64.zip --out neighbours.png
\n\b
  # How much is chance? The same with real images that were not trained on
  edm2 metrics neighbours held-out/ --data photos-64.zip --out chance.png
"""

_device = click.option("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here.")


@click.group(epilog=EPILOG)
def metrics() -> None:
    """Score samples against real images, or look for training images among them."""


@metrics.command(
    cls=GroupedCommand, epilog=REF_EPILOG, short_help="Compute statistics of real images, once per dataset."
)
@click.argument("data")
@click.argument("out", type=FILE)
@click.option(
    "--detector", "names", multiple=True, required=True, metavar="NAME", help=f"{DETECTOR_NAMES}; repeat it for more."
)
@click.option(
    "--keep",
    type=click.IntRange(0),
    default=10_000,
    show_default=True,
    help="Images whose features are kept, for kid and pr.",
)
@with_options(*WEIGHTS)
@_device
def ref(data: str, out: Path, names: tuple[str, ...], keep: int, device: str | None, **weights: Path | None) -> None:
    """Compute statistics of the images in DATA, for all detectors that samples are to be compared by, into OUT (.npz).

    DATA is a folder, a ZIP or an NPZ file of images, or the word "digits". Several processes, started by torchrun,
    share the work; the numbers are the same.
    """
    if out.suffix != ".npz":
        raise click.BadParameter(f"{out}: a reference file's name ends in .npz", param_hint="OUT")
    if out.exists() and Path(data).exists() and out.samefile(data):
        raise click.BadParameter(f"{out}: holds the images; choose another name", param_hint="OUT")
    check_output(out)
    from edm2.metrics.image_source import open_images
    from edm2.metrics.reference import collect, write_reference
    from edm2.tools.progress import progress_bar
    from edm2.tools.run import use_device
    from edm2.training.distributed.processes import joined_processes

    dataset = open_images(data)
    with joined_processes() as processes:
        detectors = load_detectors(names, weights, use_device(processes, device))
        with progress_bar(len(dataset), hidden=not processes.is_first) as bar:
            found = collect(dataset, list(detectors.values()), keep, processes, bar.update)
        if processes.is_first:
            collections = dict(zip(detectors, found, strict=True))
            statistics = {name: collection.statistics for name, collection in collections.items()}
            features = {name: collection.features for name, collection in collections.items()} if keep else None
            write_reference(out, statistics, features)
            click.echo(f"statistics of {len(dataset):,} images in {out}: {', '.join(detectors)}")


@metrics.command(cls=GroupedCommand, epilog=CALC_EPILOG, short_help="Score a folder or file of images.")
@click.argument("images")
@with_options(*SCORES, *WEIGHTS)
@_device
def calc(images: str, device: str | None, **scoring_options: Any) -> None:
    """Score IMAGES: a folder of image files, an NPZ file, or a dataset ZIP.

    Several processes, started by torchrun, share the work; the numbers are the same.
    """
    options = ScoringOptions.pop_from(scoring_options)
    wanted = options.metrics()
    from edm2.metrics.features import parts_of, read_ahead
    from edm2.metrics.image_source import open_images
    from edm2.tools.run import use_device
    from edm2.training.distributed.processes import joined_processes

    dataset = open_images(images)
    parts = parts_of(len(dataset))
    with joined_processes() as processes:
        pixels = read_ahead(dataset, processes.shard(parts))
        on = use_device(processes, device)
        options.score(pixels, [len(part) for part in parts], wanted, on, processes, {"images": images})


@metrics.command(cls=GroupedCommand, epilog=GEN_EPILOG, short_help="Draw and score samples, without writing images.")
@click.argument("network", required=False)
@sample_options(seeds="0-49999")
@with_options(*SCORES)
@sampling_options
@with_options(*WEIGHTS)
def gen(network: str | None, **given: Any) -> None:
    """Draw samples of NETWORK as `edm2 generate` does, and score them; no image is written.

    A run with conditions is drawn for those of images that it holds out, with their classes, unless --condition says
    otherwise. Several processes, started by torchrun, share the work; the numbers are the same.
    """
    scoring = ScoringOptions.pop_from(given)
    options = SamplingOptions.from_given(network, given)
    wanted = scoring.metrics()
    from edm2.sampling.drawing import batches_of
    from edm2.training.distributed.processes import joined_processes

    parts = batches_of(options.seeds, options.batch_size)
    with joined_processes() as processes:
        generator = SampleGenerator(options, processes, held_out=True)
        generator.try_out(generator.decode)
        if processes.is_first:
            warn_of_few_evaluations(generator.sampler, generator.num_steps)
        mine = [seed for part in processes.shard(parts) for seed in part]
        pixels = (generator.decode(batch.samples) for batch in generator.batches(mine))
        settings = generator.settings | {"first_seed": options.seeds[0], "last_seed": options.seeds[-1]}
        scoring.score(pixels, [len(part) for part in parts], wanted, generator.device, processes, settings)


@metrics.command(cls=GroupedCommand, epilog=NEIGHBOURS_EPILOG, short_help="Look for training images among samples.")
@click.argument("images")
@click.option("--data", required=True, help="Training images.")
@click.option(
    "--out", type=PNG_FILE, required=True, help="PNG file: on each row a sample, then its closest training images."
)
@click.option("--detector", "name", metavar="NAME",
              help=f"{DETECTOR_NAMES}; default: pixels of small images, else efficientnet-lite0.")  # fmt: skip
@click.option("--rows", type=click.IntRange(1, 256), default=16, show_default=True, help="Samples to show.")
@click.option("--neighbours", "k", type=click.IntRange(1, 32), default=5, show_default=True, help="Images for each.")
@with_options(*WEIGHTS)
@_device
def neighbours(
    images: str, data: str, out: Path, name: str | None, rows: int, k: int, device: str | None, **weights: Path | None
) -> None:
    """Find the training images closest to each of IMAGES, and draw the most suspicious samples beside them.

    A sample is suspicious if it is nearer to a training image than that image's own nearest neighbour.
    """
    from edm2.metrics.image_source import open_images
    from edm2.metrics.neighbours import find_neighbours
    from edm2.metrics.reference import collect
    from edm2.tools.figures.neighbours import draw_neighbours
    from edm2.tools.figures.style import save_figure
    from edm2.tools.options.evaluators import default_detector
    from edm2.tools.progress import progress_bar
    from edm2.tools.run import use_device
    from edm2.training.distributed.processes import joined_processes

    samples, training = open_images(images), open_images(data)
    check_output(out)
    name = name or default_detector(training.shape, are_pixels=True)
    if name == "pixels" and samples.shape != training.shape:
        raise ValueError(
            f"{images}: images of {samples.shape} (channels, height, width) cannot be compared pixel by pixel with "
            f"those of {data}, {training.shape}; take another --detector, such as efficientnet-lite0"
        )
    with joined_processes() as processes:
        [detector] = load_detectors([name], weights, use_device(processes, device)).values()
        with progress_bar(len(samples) + len(training), hidden=not processes.is_first) as bar:
            [drawn], [real] = (
                collect(dataset, [detector], len(dataset), processes, bar.update) for dataset in (samples, training)
            )
        if processes.is_first:
            found = find_neighbours(drawn.features, real.features, k)
            save_figure(draw_neighbours(samples, training, found, rows), out)
            _print_neighbours(found, name)
            click.echo(f"the most suspicious, with the training images closest to them: {out}")


def _print_neighbours(found: "Neighbours", detector: str) -> None:
    import numpy as np

    click.echo(
        f"{100 * found.fraction:.1f} % of {len(found.ratios):,} samples are nearer to a training image than that "
        f"image's own nearest neighbour (features: {detector})"
    )
    click.echo(f"distance divided by that: lowest {found.ratios.min():.3f}, median {np.median(found.ratios):.3f}")
