"""Layers that are measured, the block that each is in, and hooks on what they compute."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

BLOCK = re.compile(r"unet\.(enc|dec)\.(\d+x\d+)_[^.]*\.")
"""Name of a layer in a block, such as "unet.enc.8x8_block0.conv_res0"; the input convolution is in no block."""


@dataclass(frozen=True)
class WeightLayer:
    """A layer with trainable weights: a convolution or a linear layer, of any configuration."""

    name: str
    module: nn.Module
    bucket: str | None
    """Side and resolution of its block, such as "Enc 8x8"; None outside of the blocks."""

    @property
    def weight(self) -> Tensor:
        """Weight [out, in] or [out, in, k, k], outside of autograd."""
        return self.module.get_parameter("weight").detach()


def weight_layers(net: nn.Module) -> list[WeightLayer]:
    """Every layer of `net` with a weight of two dimensions or more, so without the scales of group norms."""
    layers = []
    for name, module in net.named_modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is not None and weight.ndim >= 2:
            block = BLOCK.match(name)
            bucket = None if block is None else f"{block[1].title()} {block[2]}"
            layers.append(WeightLayer(name, module, bucket))
    return layers


def block_layers(net: nn.Module) -> list[WeightLayer]:
    """Layers inside the blocks of encoder and decoder, attention included, as in the paper's Figures 3 and 15."""
    return [layer for layer in weight_layers(net) if layer.bucket is not None]


@contextmanager
def output_hooks(modules: Iterable[nn.Module], hook: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """Within the context, hook(module, output) follows every call of these modules."""
    handles = [module.register_forward_hook(lambda m, inputs, output: hook(m, output)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
