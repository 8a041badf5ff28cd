"""`edm2 plan`: forecast training on a cluster."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.planning.cluster import GPUS, UNKNOWN, Cluster
from edm2.planning.presets import PRESETS
from edm2.tools.options.groups import GroupedCommand, option_group
from edm2.tools.options.parsing import ARCHITECTURE, EFFICIENCY, FILE, IMAGES, NUMBER, PRECISION, SHAPE

if TYPE_CHECKING:
    from edm2.training import Dataset

IMAGENET = 1_281_167
"""Images of ImageNet's training set."""

EPILOG = """\b
Examples:
  # The paper's largest network on four machines of eight H100
  edm2 plan --preset edm2-img512-xxl --gpus 32 --gpu h100
\n\b
  # Two machines of four A100 with 100 Gbit/s between them, a quarter of the duration
  edm2 plan --preset edm2-img512-s --gpus 8 --per-node 4 --gpu a100-40 --network 100 --duration 512Mi
\n\b
  # Your own images on one consumer card
  edm2 plan --preset edm2-small-64 --shape 3x64x64 --classes 10 --images 20000 --gpus 1 --gpu rtx4090
\n\b
  # A GPU that is not listed, and an efficiency that edm2 bench has measured
  edm2 plan --preset edm2-img512-xl --gpus 16 --memory 96 --peak 800 --efficiency 0.45
\n\b
  # As data
  edm2 plan --preset edm2-img512-m --gpus 32 --gpu h200 --json plan.json

What every line means, and how far it was checked: edm2 docs plan. Where there is such a GPU, edm2 bench measures.
"""


_run = option_group("The run")
_machine = option_group("The machines")
_data = option_group("The data, where the preset does not say")


@click.command(cls=GroupedCommand, epilog=EPILOG)
@_run("--preset", type=click.Choice(list(PRESETS)), metavar="NAME", required=True, help="Preset, as in edm2 train.")
@_run(
    "--config", "architecture", type=ARCHITECTURE, metavar="LETTER", default="G", help="Step of the ladder; default: G."
)
@_run("--channels", "model_channels", type=int, help="Base width of the network.")
@_run("--batch", "batch_size", type=IMAGES, help="Images per step, over all GPUs.")
@_run("--micro-batch", type=click.IntRange(1), help="Images per GPU and forward pass; default: as many as fit.")
@_run("--duration", type=IMAGES, help="Images to train on.")
@_run("--snapshot", "snapshot_every", type=IMAGES, help="Images between EMA snapshots.")
@_run("--snapshot-precision", type=PRECISION, help="Precision of snapshots.")
@_run("--keep-snapshots", type=click.IntRange(2), help="Keep snapshots of this many times; default: all.")
@_run("--efficiency", type=EFFICIENCY, help="Measured fraction of the peak, or a JSON file of edm2 bench.")
@_machine("--gpus", type=click.IntRange(1), required=True, help="GPUs of all machines together.")
@_machine("--gpu", type=click.Choice(list(GPUS), case_sensitive=False), help="Kind; or give --memory and --peak.")
@_machine("--per-node", type=click.IntRange(1), help="GPUs of a machine; default: 8, or all if there are fewer.")
@_machine("--memory", type=NUMBER, help="Memory of a GPU in GB.")
@_machine("--peak", type=NUMBER, help="Speed of a GPU in TFLOP/s, bf16 without sparsity.")
@_machine("--link", type=NUMBER, help="GB/s from a GPU to others of its machine (one direction).")
@_machine("--network", type=NUMBER, help="Gbit/s from a machine to others.")
@_data("--data", help="Dataset to take size, classes and number of images from.")
@_data("--shape", type=SHAPE, metavar="CxHxW", help="Shape of an image; four channels or more are latents.")
@_data("--classes", type=click.IntRange(0), help="Number of classes; default: 1000 for the paper's presets, else 0.")
@_data("--images", type=IMAGES, help="Number of images; default: ImageNet's 1,281,167.")
@click.option("--json", "json_file", type=FILE, help="JSON file to write the forecast to.")
def plan(
    preset: str,
    architecture: str,
    micro_batch: int | None,
    efficiency: float | Path | None,
    gpus: int,
    gpu: str | None,
    per_node: int | None,
    memory: float | None,
    peak: float | None,
    link: float | None,
    network: float | None,
    data: str | None,
    shape: tuple[int, int, int] | None,
    classes: int | None,
    images: int | None,
    json_file: Path | None,
    **choices: Any,
) -> None:
    """Forecast training on a cluster: memory, communication, speed, days and disk.

    Nothing is trained and no GPU is needed. Numbers are counted where possible, and the output says how reliable each
    of them is.
    """
    from edm2.planning.forecast import Forecast, variants
    from edm2.planning.plan import plan_run
    from edm2.planning.speed import measured_efficiency, seconds_per_image
    from edm2.tools.reports.forecast import print_forecast, write_forecast

    chosen = {name: value for name, value in choices.items() if value is not None}
    chosen |= {"device": "cuda", "precision": "bf16"}
    name = data or ("--shape " + "x".join(map(str, shape)) if shape else "ImageNet")
    try:
        cluster = _cluster(gpus, gpu, per_node, memory=memory, peak=peak, link=link, network=network)
        dataset = _dataset(preset, data, shape, classes, images)
        config = plan_run(dataset, name, "plan", preset, None, chosen, architecture)
        ways = variants(config, cluster, micro_batch)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if isinstance(efficiency, Path):
        efficiency = measured_efficiency(efficiency, cluster.gpu)
    seconds = seconds_per_image(config.own_network, preset, cluster.gpu, efficiency)
    forecast = Forecast(config, dataset, cluster, ways, seconds)
    print_forecast(forecast)
    if json_file is not None:
        write_forecast(forecast, json_file)


def _cluster(gpus: int, kind: str | None, per_node: int | None, **numbers: float | None) -> Cluster:
    """Cluster of listed GPUs, of listed ones with some numbers replaced, or of others."""
    given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if kind is None and not {"memory", "peak"} <= given.keys():
        raise ValueError(f"which GPU? Give --gpu ({', '.join(GPUS)}), or --memory and --peak")
    for name, value in given.items():
        if value <= 0:
            raise ValueError(f"--{name} must be positive")
    if "network" in given:
        given["network"] /= 8  # bits to bytes
    gpu = UNKNOWN if kind is None else GPUS[kind.lower()]
    return Cluster(replace(gpu, **given), gpus, per_node or min(gpus, 8))


def _dataset(
    preset: str, data: str | None, shape: tuple[int, int, int] | None, classes: int | None, images: int | None
) -> "Dataset":
    """The dataset at `data`, or an imaginary one of the given or the preset's shape."""
    from edm2.planning.forecast import imaginary_dataset
    from edm2.training import open_dataset

    if data is not None:
        if shape or classes is not None or images is not None:
            raise ValueError("--data has its own --shape, --classes and --images; leave these out")
        return open_dataset(data)
    preset_shape = PRESETS[preset].shape
    shape = shape or preset_shape
    if shape is None:
        raise ValueError(f"preset {preset} is for images of any size; give --shape, such as 3x64x64, or --data")
    if images == 0:
        raise ValueError("--images must be positive")
    if classes is None:
        classes = 1000 if preset_shape else 0
    return imaginary_dataset(shape, classes, images or IMAGENET)
