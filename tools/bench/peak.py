"""What the device can do at most: a large matrix product, and the network's largest convolution alone."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks import NetworkConfig, build_network
from edm2.tools.bench.clock import Clock
from edm2.tools.bench.results import Peak


def matrix_peak(clock: Clock, dtype: torch.dtype, size: int) -> Peak:
    """FLOP/s of a product of two square matrices, in the fastest repeat."""
    a, b = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
    seconds = clock.time(lambda: a @ b).low
    return Peak(f"product of {size}x{size} matrices, {_name(dtype)}", 2 * size**3 / seconds)


@torch.no_grad()
def convolution_peak(clock: Clock, dtype: torch.dtype, network: NetworkConfig, batch: int) -> Peak:
    """FLOP/s of the convolution that has most of the network's operations: the faster layout, its fastest repeat."""
    flops, x_shape, w_shape = max(convolutions(network, batch))
    x = torch.randn(x_shape, device=clock.device).to(dtype)
    w = torch.randn(w_shape, device=clock.device).to(dtype)
    seconds = [_time_convolution(clock, x.to(memory_format=layout), w.to(memory_format=layout)) for layout in LAYOUTS]
    name = f"{w_shape[2]}x{w_shape[3]} convolution of {' x '.join(map(str, x_shape))} to {w_shape[0]} channels"
    return Peak(f"{name}, {_name(dtype)}", flops / min(seconds))


LAYOUTS = (torch.contiguous_format, torch.channels_last)


def convolutions(network: NetworkConfig, batch: int) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Operations, shape of the input and shape of the weight of each convolution that evaluates `batch` images."""
    found: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, w = inputs[0], layer.get_parameter("weight")
        if w.ndim == 4:
            pixels = batch * output.shape[2] * output.shape[3]
            found.append((2 * pixels * w.numel(), (batch, *x.shape[1:]), tuple(w.shape)))

    with torch.device("meta"):
        net = build_network(network).eval()
        for layer in net.modules():
            if isinstance(getattr(layer, "weight", None), Tensor):
                layer.register_forward_hook(note)
        net(torch.empty(1, network.img_channels, *network.size), torch.empty(1))
    yield from found


def _time_convolution(clock: Clock, x: Tensor, w: Tensor) -> float:
    return clock.time(lambda: F.conv2d(x, w, padding=w.shape[-1] // 2)).low


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
