"""Arguments of a pipeline in all the forms that users of diffusers know."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None
"""One random generator for all images, one per image, or torch's own."""


def as_list(values: Any) -> list[Any] | None:
    """List of one value, or of several in any sequence."""
    if values is None:
        return None
    values = values.tolist() if hasattr(values, "tolist") else values
    return [values] if isinstance(values, Integral | str) else list(values)


def number_of_images(
    labels: list[Any] | None,
    seeds: list[int] | None,
    latents: Tensor | None,
    generator: Generators,
    batch_size: int | None,
) -> int:
    """Number of images on which all arguments agree; a single label fits any number."""
    if seeds is not None and generator is not None:
        raise ValueError("give seeds or a generator, not both")
    counts = {
        "seeds": None if seeds is None else len(seeds),
        "latents": None if latents is None else len(latents),
        "generators": len(generator) if isinstance(generator, list) else None,
        "batch_size": batch_size,
        "class labels": None if labels is None or len(labels) == 1 else len(labels),
    }
    given = {what: count for what, count in counts.items() if count is not None}
    if len(set(given.values())) > 1 or 0 in given.values():
        listed = ", ".join(f"{what}: {count}" for what, count in given.items())
        raise ValueError(f"the number of images is unclear ({listed}): give as many of each, and at least one")
    return next(iter(given.values()), 1)


def random_integers(high: int, count: int, generator: Generators) -> Tensor:
    """Draw one integer in [0, high) per image, int64 [N] on the CPU; from each image's own generator, if it has one."""
    generators = generator if isinstance(generator, list) else [generator] * count
    devices = ["cpu" if g is None else g.device for g in generators]
    drawn = [torch.randint(high, (), generator=g, device=d) for g, d in zip(generators, devices, strict=True)]
    return torch.stack([number.cpu() for number in drawn])
