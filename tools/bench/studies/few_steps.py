"""Images per second by number of evaluations: `python -m edm2.tools.bench.studies.few_steps runs/map.safetensors`.

A flow map draws in 1, 2 and 4 evaluations. Against it stands Heun's method in 63, once with the same folded network and
once in the published sampler's form, whose network normalizes its weights in every evaluation. All take turns.
"""

from functools import partial

import click
import torch

import edm2
from edm2.networks import fold
from edm2.sampling.generation import SeedRandom
from edm2.tools.bench.timing import Clock, Timing, Work


@click.command()
@click.argument("network")
@click.option("--images", default=64, show_default=True, help="Images per batch.")
@click.option("--repeats", default=3, show_default=True, help="Turns of each.")
@click.option("--device", default="cpu", show_default=True, help="Device to draw on.")
def main(network: str, images: int, repeats: int, device: str) -> None:
    """Print images per second of NETWORK, a flow map, one row per number of evaluations."""
    torch.set_num_threads(1)
    net = edm2.load(network, device)
    folded = fold(net)
    noise = SeedRandom(range(images)).randn((net.config.img_channels, *net.config.size)).to(device)
    labels = (torch.arange(images) % net.config.label_dim).to(device) if net.config.label_dim else None
    works: dict[str, Work] = {
        f"{steps}, map": partial(edm2.sample_map, folded, noise, labels, num_steps=steps) for steps in (1, 2, 4)
    }
    works["63, heun"] = partial(edm2.sample_heun, folded, noise, labels)
    works["63, heun, as published"] = partial(edm2.sample_heun, net, noise, labels)
    clock = Clock(torch.device(device), repeats, warmup=1)
    timings = {name: Timing.of(durations) for name, durations in clock.by_turns(works).items()}
    slowest = timings["63, heun, as published"].seconds
    click.echo("| evaluations | images/s | times |\n|---|---|---|")
    for name, timing in timings.items():
        click.echo(f"| {name} | {images / timing.seconds:,.1f} | {slowest / timing.seconds:.1f} |")


if __name__ == "__main__":
    main()
