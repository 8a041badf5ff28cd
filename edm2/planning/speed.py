"""Training speed of a GPU on paper: from the paper's own figures, or from a measured efficiency.

The paper trained its networks (Table 6) on 32 A100 with 80 GB, in fp16, with an implementation of its own.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edm2.networks import NetworkConfig
from edm2.planning.cluster import GPU, GPUS
from edm2.planning.costs import TRAINING_FLOPS, count_flops
from edm2.planning.presets import PRESETS
from edm2.post_hoc_ema.files import parse_json

A100 = GPUS["a100-80"]
PUBLISHED_GPUS = 32

PUBLISHED = {
    "edm2-img512-xs": 8265,
    "edm2-img512-s": 4717,
    "edm2-img512-m": 3205,
    "edm2-img512-l": 2137,
    "edm2-img512-xl": 1597,
    "edm2-img512-xxl": 1189,
    "edm2-img64-s": 4808,
    "edm2-img64-m": 3185,
    "edm2-img64-l": 2155,
    "edm2-img64-xl": 1597,
}
"""Images per second in training on `PUBLISHED_GPUS` A100, by preset (Table 6)."""

PUBLISHED_GFLOPS = {128: 45.5, 192: 102.2, 256: 180.8, 320: 282.2, 384: 405.9, 448: 552.1}
"""One evaluation of one image by the networks for ImageNet-512, by base width (Table 6)."""

WHOLE_STEP = ("training", "whole step")
"""Section and part under which `edm2 bench` writes the speed of a training step."""


def published_rates() -> dict[int, float]:
    """FLOP/s of training per A100, by base width; a multiplication with its addition is one, as everywhere here."""
    images = {width_of(name): count for name, count in PUBLISHED.items() if "img512" in name}
    return {
        width: TRAINING_FLOPS * 1e9 * gflops * images[width] / PUBLISHED_GPUS
        for width, gflops in PUBLISHED_GFLOPS.items()
    }


def width_of(preset: str) -> int:
    """Base width of a preset's network."""
    return PRESETS[preset].network["model_channels"]


def rate_of_width(width: int, rates: Mapping[int, float]) -> float:
    """Interpolate FLOP/s by base width.

    Between two known widths on a straight line. Below the smallest in proportion to the width, as operations per number
    moved are; above the largest constant.
    """
    known = sorted(rates)
    return float(np.interp(width, [0, *known], [0, *(rates[w] for w in known)]))


def published_seconds(network: NetworkConfig, preset: str | None) -> float:
    """Seconds of an A100 to train on one image: published for this network, or interpolated for its width."""
    # Other settings of a preset do not change the speed of its network.
    if preset in PUBLISHED and network.config == "G" and network.model_channels == width_of(preset):
        return PUBLISHED_GPUS / PUBLISHED[preset]
    return TRAINING_FLOPS * count_flops(network) / rate_of_width(network.model_channels, published_rates())


def seconds_per_image(
    network: NetworkConfig, preset: str | None, gpu: GPU, efficiency: float | None
) -> dict[str, float]:
    """Seconds of one GPU to train on one image, by the source of the number.

    The sources are the published figures, scaled to `gpu` in two ways (matrix peak, memory bandwidth), and
    3 * 2 * FLOPs / (efficiency * peak) where an efficiency was measured.

    Args:
        efficiency: Measured fraction of the GPU's peak; None: not measured.
    """
    seconds = published_seconds(network, preset)
    if gpu.name == A100.name:
        found = {"published": seconds}
    else:
        found = {"published, scaled by matrix peak": seconds * A100.peak / gpu.peak}
        if gpu.bandwidth is not None and A100.bandwidth is not None:
            found["published, scaled by memory bandwidth"] = seconds * A100.bandwidth / gpu.bandwidth
    if efficiency is not None:
        flops = 2 * TRAINING_FLOPS * count_flops(network)  # data sheets count multiplications and additions
        found[f"measured, {efficiency:.1%} of the peak"] = flops / (efficiency * gpu.peak * 1e12)
    return found


def measured_efficiency(path: Path, gpu: GPU) -> float:
    """Fraction of a GPU's peak that a whole training step reached, from a file of `edm2 bench --out`.

    Raises:
        ValueError: it is no such file, or was not measured on such a GPU.
        OSError: it cannot be read.
    """
    try:
        measurements = parse_json(path.read_text(encoding="utf-8"))["measurements"]
        found = [m["flops_per_second"] for m in measurements if (m["section"], m["part"]) == WHOLE_STEP]
        efficiency = float(found[0]) / (gpu.peak * 1e12)
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValueError(f"{path}: has no speed of a whole training step; make it with edm2 bench --out") from None
    if not 0 < efficiency <= 1:
        raise ValueError(f"{path}: {efficiency:.3g} times the peak of {gpu.name}; was it measured on another GPU?")
    return efficiency
