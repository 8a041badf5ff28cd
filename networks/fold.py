"""An inference-only copy of a network whose weights are normalized, scaled and cast once instead of at every call."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from edm2.networks.layers import Conv, apply_weight
from edm2.networks.precond import Precond

Module = TypeVar("Module", bound=nn.Module)


class FoldedConv(nn.Module):
    """A `Conv` with its effective weight computed beforehand; a gain scales the output instead of the weight.

    Args:
        weight: Effective weight.
        bias: Bias of the layer, if it has one.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, gain: Tensor | float = 1) -> Tensor:
        """[N, in] -> [N, out], or [N, in, H, W] -> [N, out, H, W]; computed in the dtype of `x`."""
        y = apply_weight(x, self.weight, self.bias)
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
        setattr(folded, "compute_dtype", dtype)  # noqa: B010  # nn.Module declares no such attribute
    for module in list(folded.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, Conv):
                weight = layer.effective_weight().detach()
                if dtype is not None and weight.ndim > 2:
                    weight = weight.to(dtype)
                setattr(module, name, FoldedConv(weight, None if layer.bias is None else layer.bias.detach()))
    if isinstance(folded, Precond):
        folded.to(memory_format=folded.unet.memory_format)  # type: ignore[call-overload]  # unknown to torch's stubs
    return folded.eval().requires_grad_(False)


def is_folded(net: nn.Module) -> bool:
    """Return True if `net` came out of `fold`."""
    return any(isinstance(module, FoldedConv) for module in net.modules())
