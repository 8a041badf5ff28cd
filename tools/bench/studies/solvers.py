"""Evaluations of the network that solvers need: `python -m edm2.tools.bench.studies.solvers digits8`.

The error of an image is the root mean square over its pixels of the difference to the ODE's solution from the same
noise, which is taken to be what Heun's method gives in 512 steps. Errors of a few images, which end up elsewhere
altogether, outweigh those of all others, so besides the root mean square over images the median is shown.

The network computes in float32, the integration is float64.
"""

import click
import torch
from torch import Tensor

import edm2
from edm2.networks import fold
from edm2.sampling.generation import SeedRandom
from edm2.sampling.samplers import HEUN, SAMPLERS, Sampler

BUDGETS = (8, 12, 16, 24, 32, 48, 63)
"""Numbers of evaluations. Heun's method takes an odd number, so one less than an even one."""

SUBSTEPS = 512
"""Steps of Heun's method whose result counts as the solution."""


@click.command()
@click.argument("network")
@click.option("--images", default=64, show_default=True, help="Images of seeds 0, 1, ..., each class in turn.")
@click.option("--guidance", default=1.0, show_default=True, help="Weight; the network guides itself without labels.")
def main(network: str, images: int, guidance: float) -> None:
    """Print the errors of all solvers on NETWORK, one row per number of evaluations."""
    torch.set_num_threads(1)
    net = fold(edm2.load(network))
    noise = SeedRandom(range(images)).randn((net.config.img_channels, *net.config.size)).double()
    labels = torch.arange(images) % net.config.label_dim if net.config.label_dim else None

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return net(x.float(), sigma.float(), labels).double()

    guided = edm2.guided(denoise, edm2.without_labels(denoise), guidance)

    def solved(sampler: Sampler, num_steps: int) -> Tensor:
        return sampler.sample(guided, noise, labels, num_steps=num_steps, dtype=torch.float64)

    solution = solved(HEUN, SUBSTEPS)
    click.echo("| evaluations | " + " | ".join(SAMPLERS) + " |\n" + "|---" * (1 + len(SAMPLERS)) + "|")
    for budget in BUDGETS:
        cells = []
        for sampler in SAMPLERS.values():
            images_drawn = solved(sampler, (budget - 1) // sampler.evaluations_per_step + 1)
            squares = (images_drawn - solution).square().mean(dim=(1, 2, 3))
            cells.append(f"{squares.mean().sqrt():.1e} ({squares.sqrt().median():.1e})")
        click.echo(f"| {budget} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
