"""An inference-only copy of a network whose weights are normalized, scaled and cast once instead of at every call."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from edm2.networks.layers import Conv
from edm2.networks.skeleton import UNetSkeleton

Module = TypeVar("Module", bound=nn.Module)


class FoldedConv(nn.Module):
    """A `Conv` with its kernel computed beforehand; a gain scales the output instead of the kernel.

    Args:
        convolve: What the layer does with kernel and bias.
        weight: The kernel.
        bias: Its bias, if it has one.
    """

    def __init__(self, convolve: Callable[..., Tensor], weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.convolve = convolve
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, gain: Tensor | float = 1) -> Tensor:
        """As the layer's forward pass."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = self.convolve(x, self.weight.to(x.dtype), bias)
        return y * gain if isinstance(gain, Tensor) or gain != 1 else y

    def train(self, mode: bool = True) -> "FoldedConv":
        """Stay in evaluation mode.

        Raises:
            RuntimeError: `mode` is True. The folded weights are no longer the trained parameters.
        """
        if mode:
            raise RuntimeError("a folded network is for inference only; train the network it was folded from")
        return super().train(mode)


@torch.no_grad()
def fold(net: Module, dtype: torch.dtype | None = None) -> Module:
    """Copy `net` for inference: same function, no weight normalization left to do.

    Args:
        net: Any module with layers of `edm2.networks.layers`; it is not changed.
        dtype: dtype of convolution weights and of the U-Net's activations (`compute_dtype`), or None to keep it.
            Linear layers belong to the embedding and stay in float32.

    Returns:
        A copy in evaluation mode without trainable parameters. It refuses `train()` and `edm2.save`.
    """
    folded = copy.deepcopy(net)
    if dtype is not None and hasattr(folded, "compute_dtype"):
        folded.compute_dtype = dtype
    for module in list(folded.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, Conv):
                weight = layer.kernel().detach()
                if dtype is not None and weight.ndim > 2:
                    weight = weight.to(dtype)
                bias = None if layer.bias is None else layer.bias.detach()
                setattr(module, name, FoldedConv(layer.convolve, weight, bias))
    layouts = {module.memory_format for module in folded.modules() if isinstance(module, UNetSkeleton)}
    for layout in layouts:
        folded.to(memory_format=layout)
    return folded.eval().requires_grad_(False)


def is_folded(net: nn.Module) -> bool:
    """Whether `net` came out of `fold`."""
    return any(isinstance(module, FoldedConv) for module in net.modules())
