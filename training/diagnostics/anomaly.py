"""Where the first NaN or infinity of a run comes from."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

SHOWN = 8
"""Images that a message names; the rest is counted."""


class AnomalyError(ArithmeticError):
    """A number is NaN or infinite; the message says where."""

    def __init__(self, where: str, rows: tuple[int, ...]) -> None:
        super().__init__(where)
        self.where = where
        """Layer, and whether in the forward pass or in a gradient."""
        self.rows = rows
        """Images of the forward pass to which the numbers belong; empty: all, or unknown."""


@contextmanager
def finding_anomalies(net: nn.Module) -> Iterator[None]:
    """Within the context, the first NaN or infinity in `net` raises an AnomalyError, forward or backward.

    What goes into each module and comes out of it is looked at, and so are their gradients and those of parameters. To
    look means to wait for the device: a step takes several times as long. Nothing changes but rounding, as gradients
    of a tensor with several uses are added up in another order.

    Args:
        net: Takes images [N, C, H, W] first; must not be compiled.
    """
    handles = []
    for name, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(partial(_look_before, _title(name), not name)))
        handles.append(module.register_forward_hook(partial(_look_after, _title(name), not name)))
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(partial(_look_at_parameter, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _title(name: str) -> str:
    return name or "the network"


def _look_before(title: str, is_whole: bool, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward: what goes in. Backward: what this module alone hands back, which an alias of its input receives."""
    what = "the noisy images" if is_whole else f"forward, between the layer before and {title}"
    for tensor in _tensors(inputs):
        _check(tensor, what)
    return tree_map_only(Tensor, partial(_tapped, f"gradient, in {title}"), inputs)


def _look_after(title: str, is_whole: bool, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Forward: what comes out. Backward: what arrives from the layers behind."""
    weights = [name for name, p in module.named_parameters(recurse=False) if not _is_finite(p)]
    because = f" (its {weights[0]} is not finite)" if weights else ""
    for tensor in _tensors([output]):
        _check(tensor, f"forward, in {title}{because}")
    behind = "gradient, in the loss" if is_whole else f"gradient, between {title} and the layer behind"
    return tree_map_only(Tensor, partial(_tapped, behind), output)


def _look_at_parameter(name: str, parameter: Tensor) -> None:
    if not _is_finite(parameter.grad):
        raise AnomalyError(f"gradient of {name}", ())


def _tapped(what: str, tensor: Tensor) -> Tensor:
    """The same numbers; the gradient that they get is looked at."""
    if not tensor.requires_grad:
        return tensor
    alias = tensor.view_as(tensor)
    alias.register_hook(partial(_check, what=what))
    return alias


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in torch.utils._pytree.tree_leaves(list(values)) if isinstance(value, Tensor)]


def _check(tensor: Tensor, what: str) -> None:
    """Raise AnomalyError if any of its numbers is not finite."""
    if tensor.is_floating_point() and not _is_finite(tensor):
        bad = (~tensor.isfinite()).reshape(len(tensor), -1).any(dim=1) if tensor.ndim else tensor.new_zeros(0)
        raise AnomalyError(what, tuple(bad.nonzero().flatten().tolist()))


def _is_finite(tensor: Tensor) -> bool:
    """Of a tensor that is divided among processes: this one's share."""
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return bool((tensor if to_local is None else to_local()).isfinite().all())
