"""A first guess of how long a run takes here: its FLOPs over the speed of a convolution, measured for a second."""

import time

import torch
from torch.nn.functional import conv2d

from edm2.planning.costs import TRAINING_FLOPS, count_flops, evaluations_per_image
from edm2.training import TrainingConfig
from edm2.training.config import DTYPES

SECONDS = 0.5
"""Time that the convolution runs."""

SHARE = 0.75
"""Speed of whole training steps over that of the convolution: 0.60 to 0.87 for `edm2-tiny` at 16x16 to 64x64, `digits8`
and `edm2-small-32`, in fp32 and bf16, on one core of a CPU."""


def guessed_speed(config: TrainingConfig, processes: int = 1) -> float:
    """Images per second of a run, within a factor of 1.5 or so; steps tell it better.

    The convolution is that of the network's first level, forward and backward.
    """
    device, network = torch.device(config.device), config.own_network
    dtype = DTYPES[config.precision]
    (height, width), channels = network.size, network.model_channels
    images = max(1, min(config.images_per_forward, (1 << 22) // (channels * height * width)))
    x = torch.randn(images, channels, height, width, device=device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    x.requires_grad_(True)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype, requires_grad=True)
    flops = TRAINING_FLOPS * x.numel() * channels * 9

    def once() -> None:
        torch.autograd.grad(conv2d(x, weight, padding=1).float().sum(), (x, weight))[1].flatten()[0].item()

    once()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        once()
        count += 1
    rate = count * flops / (time.perf_counter() - start)
    return processes * SHARE * rate / (evaluations_per_image(config) * count_flops(network))
