"""`edm2 plan`: what training on a cluster would be, before anybody has it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.planning.presets import PRESETS
from edm2.tools.options.groups import GroupedCommand, GroupedOption
from edm2.tools.options.parsing import FILE, IMAGES, LETTER, NUMBER, PRECISION

if TYPE_CHECKING:
    from edm2.planning.hardware import Cluster
    from edm2.training import Dataset, TrainingConfig

KINDS = ("a100-40", "a100-80", "h100", "h200", "b200", "l40s", "a10", "rtx3090", "rtx4090", "rtx5090")
"""Names that `edm2.planning.hardware` knows; to import them from there would take a second before --help."""

IMAGENET = 1_281_167
"""Images to train on."""

EPILOG = """\b
Examples:
  # The paper's largest network on four machines of eight H100
  edm2 plan --preset edm2-img512-xxl --gpus 32 --gpu h100
\b
  # Two machines of four A100 with 100 Gbit/s between them, a quarter of the duration
  edm2 plan --preset edm2-img512-s --gpus 8 --per-node 4 --gpu a100-40 --network 100 --duration 512Mi
\b
  # Your own images on one consumer card
  edm2 plan --preset edm2-small-64 --shape 3x64x64 --classes 10 --images 20000 --gpus 1 --gpu rtx4090
\b
  # A GPU that is not listed, and an efficiency that edm2 bench has measured
  edm2 plan --preset edm2-img512-xl --gpus 16 --memory 96 --peak 800 --efficiency 0.45
\b
  # As data
  edm2 plan --preset edm2-img512-m --gpus 32 --gpu h200 --json plan.json

docs/plan.md explains every line, and how far it was checked. Where there is such a GPU, edm2 bench measures.
"""


class Shape(click.ParamType):
    """CHANNELSxHEIGHTxWIDTH."""

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Three whole numbers."""
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", value.strip())
        if not match or not all(int(number) for number in match.groups()):
            self.fail(f"{value!r} is no shape; write CHANNELSxHEIGHTxWIDTH, such as 3x64x64", param, ctx)
        return tuple(int(number) for number in match.groups())


class Efficiency(click.ParamType):
    """A share of the peak, or a file of `edm2 bench --out`."""

    name = "share|file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A number in (0, 1], or a path."""
        if not isinstance(value, str):
            return value
        try:
            share = float(value)
        except ValueError:
            return Path(value)
        if not 0 < share <= 1:
            self.fail(f"{value} is no share of a peak; write a number between 0 and 1, such as 0.45", param, ctx)
        return share


def _options(group: str) -> Callable[..., Callable]:
    """Options under one heading; those without a type are numbers."""

    def option(*names: str, help: str, type: Any = NUMBER, **attributes: Any) -> Callable:
        return click.option(*names, help=help, type=type, cls=GroupedOption, group=group, **attributes)

    return option


_run = _options("The run")
_machine = _options("The machines")
_data = _options("The data, where the preset does not say")


@click.command(cls=GroupedCommand, epilog=EPILOG)
@_run("--preset", type=click.Choice(list(PRESETS)), metavar="NAME", required=True, help="As in edm2 train.")
@_run(
    "--config",
    "letter",
    type=LETTER,
    metavar="LETTER",
    default="G",
    help="Step of the paper's ladder; default: G.",
)
@_run("--channels", "model_channels", type=int, help="Base width of the network.")
@_run("--batch", "batch_size", type=IMAGES, help="Images per step, over all GPUs.")
@_run("--micro-batch", type=click.IntRange(1), help="Images per GPU and forward pass; default: as many as fit.")
@_run("--duration", type=IMAGES, help="Images to train on.")
@_run("--snapshot", "snapshot_every", type=IMAGES, help="Images between EMA snapshots.")
@_run("--snapshot-precision", type=PRECISION, help="Precision of snapshots.")
@_run("--keep-snapshots", type=click.IntRange(1), help="Thin snapshots to this many times; default: keep all.")
@_run("--efficiency", type=Efficiency(), help="Measured share of the peak, or a JSON file of edm2 bench.")
@_machine("--gpus", type=click.IntRange(1), required=True, help="All together.")
@_machine("--gpu", type=click.Choice(KINDS, case_sensitive=False), help="Kind; others by --memory and --peak.")
@_machine("--per-node", type=click.IntRange(1), help="GPUs of a machine; default: 8, or all if there are fewer.")
@_machine("--memory", help="GB of a GPU.")
@_machine("--peak", help="TFLOP/s of a GPU in bf16 without sparsity.")
@_machine("--link", help="GB/s from a GPU to others of its machine (one direction).")
@_machine("--network", help="Gbit/s from a machine to others.")
@_data("--data", type=str, help="A dataset: its size, classes and number of images.")
@_data("--shape", type=Shape(), metavar="CxHxW", help="Channels, height and width; four channels or more are latents.")
@_data("--classes", type=click.IntRange(0), help="Number of classes; default: 1000 for the paper's presets, else 0.")
@_data("--images", type=IMAGES, help="Number of images; default: ImageNet's 1,281,167.")
@click.option("--json", "json_file", type=FILE, help="Also write everything as JSON.")
def plan(
    preset: str,
    letter: str,
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

    Nothing is trained and no GPU is needed. Numbers are counted where possible and say how sure they are.
    """
    from edm2.planning.forecast import Forecast, variants
    from edm2.planning.throughput import measured_efficiency, paces
    from edm2.tools.reports.plan import print_forecast, write_forecast

    try:
        cluster = _cluster(gpus, gpu, per_node, memory, peak, link, network)
        dataset = _dataset(preset, data, shape, classes, images)
        config = _config(dataset, data, shape, preset, letter, choices)
        ways = variants(config, cluster, micro_batch)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if isinstance(efficiency, Path):
        efficiency = measured_efficiency(efficiency, cluster.gpu)
    forecast = Forecast(config, dataset, cluster, ways, paces(config.network, preset, cluster.gpu, efficiency))
    print_forecast(forecast)
    if json_file is not None:
        write_forecast(forecast, json_file)


def _cluster(
    gpus: int,
    kind: str | None,
    per_node: int | None,
    memory: float | None,
    peak: float | None,
    link: float | None,
    network: float | None,
) -> "Cluster":
    """Of a kind that is listed, some of its numbers replaced, or of another one.

    Raises:
        ValueError: numbers are missing, not positive, or do not fit together.
    """
    from edm2.planning.hardware import GPUS, UNKNOWN, Cluster

    if kind is None and (memory is None or peak is None):
        raise ValueError(f"which GPU? Give --gpu ({', '.join(KINDS)}), or --memory and --peak")
    given = {"memory": memory, "peak": peak, "link": link, "network": network and network / 8}  # bits to bytes
    for name, value in given.items():
        if value is not None and value <= 0:
            raise ValueError(f"--{name} must be positive")
    gpu = UNKNOWN if kind is None else GPUS[kind.lower()]
    gpu = replace(gpu, **{name: value for name, value in given.items() if value is not None})
    return Cluster(gpu, gpus, per_node or min(gpus, 8))


def _dataset(
    preset: str, data: str | None, shape: tuple[int, int, int] | None, classes: int | None, images: int | None
) -> "Dataset":
    """The one that was named, or one of which only the size is known.

    Raises:
        ValueError: nothing says how large the images are.
    """
    from edm2.planning.forecast import imaginary_dataset
    from edm2.training import open_dataset

    if data is not None:
        if shape or classes is not None or images is not None:
            raise ValueError("--data says all that --shape, --classes and --images would say; leave these out")
        return open_dataset(data)
    of_preset = PRESETS[preset].shape
    if shape is None and of_preset is None:
        raise ValueError(f"preset {preset} is for images of any size; give --shape, such as 3x64x64, or --data")
    if classes is None:
        classes = 1000 if of_preset else 0
    return imaginary_dataset(shape or of_preset, classes, images or IMAGENET)


def _config(
    dataset: "Dataset",
    data: str | None,
    shape: tuple[int, int, int] | None,
    preset: str,
    letter: str,
    choices: dict[str, Any],
) -> "TrainingConfig":
    """As `edm2 train` would plan it on a GPU.

    Raises:
        ValueError: choices do not fit together, or not the data.
    """
    from edm2.planning.plan import plan_run

    chosen = {name: value for name, value in choices.items() if value is not None}
    chosen |= {"device": "cuda", "precision": "bf16"}
    name = data or ("--shape " + "x".join(map(str, shape)) if shape else "ImageNet")
    return plan_run(dataset, name, "plan", preset, None, chosen, letter)
