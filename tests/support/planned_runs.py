"""Datasets of a few images, and runs planned on them."""

from typing import Any

import torch

from edm2.planning.plan import plan_run
from edm2.training import ArrayDataset, Dataset, TrainingConfig


def images(channels: int = 1, height: int = 8, width: int = 8, classes: int = 0, count: int = 40) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, height, width), generator=generator).to(torch.uint8)
    labels = torch.arange(count) % classes if classes else None
    return ArrayDataset(pixels, labels)


def plan(
    dataset: Dataset, preset: str = "digits8", conditional: bool | None = None, out: str = "run", **choices: Any
) -> TrainingConfig:
    return plan_run(dataset, "data.zip", out, preset, conditional, choices)


def with_statistics(dataset: Dataset, sigma_data: float = 0.5) -> Dataset:
    channels = dataset.shape[0]
    dataset.pixel_stats = {"mean": [100.0] * channels, "std": [127.5 * sigma_data] * channels, "sigma_data": sigma_data}
    return dataset


def rgb64() -> Dataset:
    return ArrayDataset(torch.zeros(40, 3, 64, 64, dtype=torch.uint8))
