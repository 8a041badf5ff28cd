"""The precision in which averages are computed."""

import torch


def average_dtype(dtype: torch.dtype) -> torch.dtype | None:
    """Type in which tensors of `dtype` are averaged: float32 at least; None for integers, which are copied.

    One update moves an average by parts per million, which vanishes in the rounding of bfloat16 and float16.
    """
    if dtype.is_floating_point or dtype.is_complex:
        return torch.promote_types(dtype, torch.float32)
    return None
