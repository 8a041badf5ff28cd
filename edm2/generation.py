"""Images by seed. An image depends on its seed and class alone, not on the batch or the device count."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from edm2.guidance import guided
from edm2.networks import Precond
from edm2.sampling import sample_heun

Sampler = Callable[..., Tensor]


@dataclass(frozen=True)
class Batch:
    """Samples of a few seeds."""

    seeds: tuple[int, ...]
    """Seed of each image."""
    classes: Tensor | None
    """Class of each image, int64 [N]; None for an unconditional network."""
    samples: Tensor
    """What the network draws, [N, C, H, W] float32; a codec turns it into pixels."""


class SeedRandom:
    """Random numbers per image: image i of the batch draws from a CPU generator of its own, seeded by its seed.

    Args:
        seeds: Seeds of the batch; taken modulo 2³².
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed % (1 << 32)) for seed in seeds]

    def randn(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Unit Gaussians, float32 [N, *shape]."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(device)

    def randn_like(self, x: Tensor) -> Tensor:
        """Unit Gaussians like `x`, drawn in its dtype."""
        drawn = [torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in self.generators]
        return torch.stack(drawn).to(x.device)

    def randint(self, high: int) -> Tensor:
        """One integer in [0, high) per image, int64 [N]."""
        return torch.stack([torch.randint(high, (), generator=g) for g in self.generators])


def generate(
    net: Precond,
    seeds: Sequence[int],
    classes: int | Sequence[int] | None = None,
    guide: Precond | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0, float("inf")),
    batch_size: int = 64,
    sampler: Sampler = sample_heun,
    device: torch.device | str | None = None,
    **sampler_options: float,
) -> Iterator[Batch]:
    """Draw one sample per seed, batch by batch.

    Args:
        net: Denoiser; faster when folded.
        seeds: One per image.
        classes: One class for all images, one per image, or None: drawn from the seed.
        guide: Denoiser to guide away from (see `edm2.guided`).
        guidance: Guidance weight; 1 is none, any other needs a guide.
        interval: Noise levels (low, high] with guidance.
        batch_size: Images at a time.
        sampler: `sample_heun` or another function of its form.
        device: Where to compute; default: where `net` is.
        sampler_options: Handed to the sampler, such as num_steps=32.

    Raises:
        ValueError: a class outside the network's, a wrong number of classes, guidance without a guide, or
            batch_size < 1; all when the first batch is asked for.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if guide is None and guidance != 1:
        raise ValueError(f"guidance={guidance} needs a network to guide away from: give guide")
    seeds = list(seeds)
    device = next(net.buffers()).device if device is None else torch.device(device)
    chosen = _chosen_classes(classes, len(seeds), net.config.label_dim)
    denoise = net if guide is None else guided(net, guide, guidance, interval)
    shape = (net.config.img_channels, *net.config.size)
    for start in range(0, len(seeds), batch_size):
        part = seeds[start : start + batch_size]
        random = SeedRandom(part)
        noise = random.randn(shape, device)  # first the noise, then the class: both belong to the seed
        labels = None
        if net.config.label_dim:
            drawn = random.randint(net.config.label_dim)
            labels = drawn if chosen is None else torch.tensor(chosen[start : start + batch_size])
        samples = sampler(
            denoise,
            noise,
            None if labels is None else labels.to(device),
            randn_like=random.randn_like,
            **sampler_options,
        )
        yield Batch(tuple(part), labels, samples)


def _chosen_classes(classes: int | Sequence[int] | None, count: int, label_dim: int) -> list[int] | None:
    """One class per image, or None to draw them."""
    if classes is None:
        return None
    chosen = [int(classes)] * count if isinstance(classes, Integral) else [int(c) for c in classes]
    if len(chosen) != count:
        raise ValueError(f"{len(chosen)} classes for {count} seeds: give one class, or one per seed")
    if label_dim == 0:
        raise ValueError("this network has no classes: it was trained without labels")
    for c in chosen:
        if not 0 <= c < label_dim:
            raise ValueError(f"class {c} does not exist: this network knows classes 0 to {label_dim - 1}")
    return chosen
