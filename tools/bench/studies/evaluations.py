"""Distance by number of evaluations: `python -m edm2.tools.bench.studies.evaluations map.safetensors teacher`.

A flow map draws in 1, 2 and 4 evaluations. Beside it stand its teacher, by Heun's method and by DEIS, and the map as a
denoiser, by DEIS.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import click
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from edm2.io.model import load_to_sample, read_metadata
from edm2.metrics import load_detector
from edm2.sampling.samplers import HEUN, MAP, SAMPLERS, Sampler
from edm2.sweep.evaluator import SampleSettings, evaluator_by, score_network
from edm2.tools.figures.style import colors, save_figure, styled
from edm2.training import codec_from_json, open_dataset

STEPS = {HEUN: (2, 3, 4, 5, 6, 8, 12, 16, 32), SAMPLERS["deis"]: (2, 3, 4, 5, 6, 8, 12, 16, 32, 63), MAP: (1, 2, 4)}


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.argument("teacher", type=click.Path(path_type=Path))
@click.option("--data", default="digits", show_default=True, help="Real images to compare with.")
@click.option("--detector", default="pixels", show_default=True, help="As of edm2 sweep.")
@click.option("--weights", type=click.Path(path_type=Path), help="The detector's weights.")
@click.option("--samples", default=2000, show_default=True, help="Images per distance.")
@click.option("--most", default=63, show_default=True, help="Most evaluations per image.")
@click.option("--figure", type=click.Path(path_type=Path), default="evaluations.png", show_default=True)
def main(
    network: Path, teacher: Path, data: str, detector: str, weights: Path | None, samples: int, most: int, figure: Path
) -> None:
    """Print distances of NETWORK, a flow map, and of its TEACHER, and draw them against evaluations."""
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    evaluator = evaluator_by(open_dataset(data), load_detector(detector, weights, cpu))
    codec = codec_from_json(read_metadata(network)["codec"])
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, path, sampler in _ways(network, teacher):
        net = load_to_sample(path, cpu, torch.float32, None)
        for steps in STEPS[sampler]:
            evaluations = steps * sampler.evaluations_per_step - (sampler == HEUN)
            if evaluations <= most:
                score = score_network(net, codec, evaluator, SampleSettings(samples, steps, sampler=sampler))
                curves.setdefault(name, []).append((evaluations, score.distance))
                click.echo(f"{name}, {evaluations}: {evaluator.title} {score.distance:.4g}, accuracy {score.accuracy}")
    _draw(figure, curves, f"{evaluator.title} of {samples:,} samples")


def _ways(network: Path, teacher: Path) -> Iterable[tuple[str, Path, Sampler]]:
    yield "flow map", network, MAP
    yield "flow map as a denoiser, DEIS", network, SAMPLERS["deis"]
    yield "teacher, DEIS", teacher, SAMPLERS["deis"]
    yield "teacher, Heun", teacher, HEUN


def _draw(path: Path, curves: dict[str, list[tuple[int, float]]], title: str) -> None:
    figure, axes = plt.subplots(figsize=(6.8, 4), layout="constrained")
    styled(axes)
    for color, (name, points) in zip(colors(len(curves)), curves.items(), strict=True):
        axes.loglog(*zip(*points, strict=True), "o-", color=color, label=name, markersize=4)
    ticks = sorted({2 ** round(math.log2(n)) for points in curves.values() for n, _ in points})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("evaluations of the network per image")
    axes.set_ylabel(title)
    axes.legend(frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
