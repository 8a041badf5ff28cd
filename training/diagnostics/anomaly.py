"""Search for the layer in which the first NaN or infinity of a run appears."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

SHOWN = 8
"""Images that a message names; the rest is counted."""


class AnomalyError(ArithmeticError):
    """A number is NaN or infinite; the message says where."""

    def __init__(self, where: str, rows: tuple[int, ...]) -> None:
        super().__init__(where)
        self.where = where
        """Layer, and forward pass or gradient."""
        self.rows = rows
        """Images of the forward pass to which the numbers belong; empty: all, or unknown."""


@contextmanager
def finding_anomalies(net: nn.Module) -> Iterator[None]:
    """Within the context, the first NaN or infinity in `net` raises an AnomalyError, forward or backward.

    Checks inputs and outputs of every module, their gradients and those of parameters. Each check waits for the device:
    a step takes several times as long. Nothing changes but rounding, as gradients of a tensor with several uses are
    added up in another order.

    Args:
        net: Takes images [N, C, H, W] first; must not be compiled.
    """
    handles = []
    for name, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(partial(_check_inputs, name)))
        handles.append(module.register_forward_hook(partial(_check_output, name)))
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(partial(_check_parameter, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_inputs(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check inputs, and the gradients that this module alone returns for them, by giving it an alias of each."""
    _check(inputs, f"forward, between the layer before and {name}" if name else "the noisy images")
    return _with_checked_gradient(inputs, f"gradient, in {name or 'the network'}")


def _check_output(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Check the output, and the gradient that arrives from the layers behind."""
    weights = [key for key, parameter in module.named_parameters(recurse=False) if not _is_finite(parameter)]
    because = f" (its {weights[0]} is not finite)" if weights else ""
    _check(output, f"forward, in {name or 'the network'}{because}")
    behind = f"gradient, between {name} and the layer behind" if name else "gradient, in the loss"
    return _with_checked_gradient(output, behind)


def _check_parameter(name: str, parameter: Tensor) -> None:
    if parameter.grad is not None and not _is_finite(parameter.grad):
        raise AnomalyError(f"gradient of {name}", ())


def _with_checked_gradient(values: Any, where: str) -> Any:
    """The same tensors as aliases, whose gradients are checked."""

    def alias(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            tensor = tensor.view_as(tensor)
            tensor.register_hook(lambda gradient: _check(gradient, where))
        return tensor

    return tree_map_only(Tensor, alias, values)


def _check(values: Any, where: str) -> None:
    """Raise AnomalyError if any number of these tensors is not finite."""
    for tensor in tree_leaves(values):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not _is_finite(tensor):
            bad = (~tensor.isfinite()).reshape(len(tensor), -1).any(dim=1) if tensor.ndim else torch.zeros(0)
            raise AnomalyError(where, tuple(bad.nonzero().flatten().tolist()))


def _is_finite(tensor: Tensor) -> bool:
    """True if all its numbers are finite; if it is sharded, those of this process."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return bool(local.isfinite().all())
