"""What the statistics of a dataset mean for those who train on it, as a table on the screen."""

import click

from edm2.datasets.measuring import Statistics
from edm2.training import Dataset


def print_pixel_statistics(statistics: Statistics, levels: int) -> None:
    """Of pixels with values from 0 to `levels` - 1."""
    _print_table(statistics, f"levels 0 to {levels - 1}")
    click.echo(
        f"sigma_data {statistics.sigma_data:.4f} with black at -1 and white at 1: the networks expect 0.5, and "
        "edm2 train --standardize scales every channel to that by these values"
    )


def print_latent_statistics(statistics: Statistics) -> None:
    """Of latents."""
    _print_table(statistics, "as the VAE gives them")
    click.echo(
        f"sigma_data {statistics.sigma_data:.4f}, all channels together: the networks expect 0.5, and "
        "edm2 train scales every channel to that by these values"
    )


def print_statistics(statistics: Statistics, dataset: Dataset) -> None:
    """Of whatever `dataset` holds."""
    if dataset.kind == "pixels":
        print_pixel_statistics(statistics, dataset.levels)
    else:
        print_latent_statistics(statistics)


def _print_table(statistics: Statistics, unit: str) -> None:
    click.echo(f"channel {'mean':>9} {'std':>9}  ({unit})")
    for channel, (mean, std) in enumerate(zip(statistics.mean, statistics.std, strict=True)):
        remark = "  never varies: there is nothing to learn from" if std == 0 else ""
        click.echo(f"{channel:>7} {mean:9.4f} {std:9.4f}{remark}")
