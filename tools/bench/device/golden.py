"""Reading golden numbers (tests/golden), and the two distances in which their tolerances are stated."""

from collections.abc import Mapping

import torch
from torch import Tensor


def select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries below `prefix/`, without the prefix."""
    return {key.removeprefix(f"{prefix}/"): x for key, x in tensors.items() if key.startswith(f"{prefix}/")}


def max_rel(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|, in float64. For b = 0 this is 0 if a = 0 too, else infinite."""
    return _ratio((_difference(a, b)).abs().max(), b.detach().double().abs().max())


def rms_rel(a: Tensor, b: Tensor) -> float:
    """rms(a - b) / rms(b), in float64. For b = 0 this is 0 if a = 0 too, else infinite."""
    return _ratio(_difference(a, b).square().mean().sqrt(), b.detach().double().square().mean().sqrt())


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b in float64; shapes must agree, as broadcasting would hide a wrong one."""
    if a.shape != b.shape:
        raise AssertionError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    return a.detach().double() - b.detach().double()


def _ratio(error: Tensor, scale: Tensor) -> float:
    """error / scale, where nothing is expected only nothing will do."""
    if scale == 0:
        return 0.0 if error == 0 else torch.inf
    return (error / scale).item()
