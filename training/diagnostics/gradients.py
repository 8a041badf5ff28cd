"""The gradient that a bin of noise levels asks for, without touching the one that training is about to use."""

import torch
from torch import Tensor, nn


class BinGradient:
    """The gradient of the mean loss of a bin, from part to part."""

    def __init__(self, net: nn.Module, images: int) -> None:
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.images = images
        self.sums: list[Tensor | None] = [None] * len(self.parameters)

    def add(self, loss: Tensor) -> None:
        """Take in the loss per element of some images; `p.grad` stays as it is."""
        grads = torch.autograd.grad(loss.sum() / self.images, self.parameters, allow_unused=True)
        self.sums = [b if a is None else a if b is None else a + b for a, b in zip(self.sums, grads, strict=True)]

    def norm_and_nonfinite(self) -> tuple[Tensor, float]:
        """(L2 norm over all parameters, share of entries that are NaN or infinite), the former without the latter."""
        grads = [grad for grad in self.sums if grad is not None]
        entries = sum(grad.numel() for grad in grads)
        nonfinite = entries - int(sum(grad.isfinite().sum() for grad in grads))
        if nonfinite:
            grads = [torch.nan_to_num(grad, nan=0, posinf=0, neginf=0) for grad in grads]
        return torch.nn.utils.get_total_norm(grads), nonfinite / entries
