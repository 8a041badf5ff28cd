"""Images by seed: an image depends on its seed and class alone, not on the batch or the number of devices.

Everything random about an image comes from one generator of its own, seeded by its seed and asked in a fixed order:
first for the noise that sampling starts from, then for its class, then for the noise of churn.
"""

import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import Any, Protocol

import torch
from torch import Tensor

from edm2.networks import NetworkConfig, Precond
from edm2.sampling.conditions import rows_of_conditions
from edm2.sampling.external import DrawnImages, ExternalNetwork, SampledNetwork
from edm2.sampling.guidance import EVERYWHERE, Interval, guided
from edm2.sampling.samplers.heun import Denoiser, sample_heun

SamplerFunction = Callable[..., Tensor]


class Drawing(Protocol):
    """Something that knows what it draws: a network, or the averages of one."""

    @property
    def config(self) -> NetworkConfig | DrawnImages: ...


@dataclass(frozen=True)
class SampleBatch:
    """Samples of a few seeds."""

    seeds: tuple[int, ...]
    """Seed of each image."""
    classes: Tensor | None
    """Class of each image, int64 [N]; None for an unconditional network."""
    samples: Tensor
    """Output of the sampler, [N, C, H, W] float32; a codec decodes it to pixels."""


class SamplingError(ValueError):
    """Samples that are not finite; the message is one line."""


class SeedRandom:
    """Random numbers of a batch: image i has a CPU generator of its own, seeded by its seed.

    Args:
        seeds: Seeds of the batch; taken modulo 2³².
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed % (1 << 32)) for seed in seeds]

    def randn(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Draw unit Gaussians, float32 [N, *shape]."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(device)

    def randn_like(self, x: Tensor) -> Tensor:
        """Draw unit Gaussians like `x`, in its dtype."""
        drawn = [torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in self.generators]
        return torch.stack(drawn).to(x.device)

    def randint(self, high: int) -> Tensor:
        """Draw one integer in [0, high) per image, int64 [N]."""
        return torch.stack([torch.randint(high, (), generator=g) for g in self.generators])


def generate(
    net: SampledNetwork,
    seeds: Sequence[int],
    classes: int | Sequence[int] | None = None,
    guide: Denoiser | None = None,
    guidance: float = 1.0,
    interval: Interval = EVERYWHERE,
    batch_size: int = 64,
    sampler: SamplerFunction = sample_heun,
    device: torch.device | str | None = None,
    conditions: Mapping[str, Any] | None = None,
    **sampling_options: float,
) -> Iterator[SampleBatch]:
    """Draw one sample per seed, batch by batch.

    Args:
        net: Denoiser; faster when folded. One of the user's own in an `ExternalNetwork`.
        seeds: One per image.
        classes: Number of one class for all images, one per image, or None: drawn from the seed, among those that had
            images in training. `class_index` finds the number of a name.
        guide: Denoiser to guide away from: another network, or `edm2.without_labels(net)` (see `edm2.guided`).
        guidance: Guidance weight; 1 is none, any other needs a guide.
        interval: Noise levels (low, high] with guidance.
        batch_size: Images at a time.
        sampler: `edm2.sample_heun`, `edm2.sample_deis` (docs/solvers.md), or another function of their form.
        device: Device to compute on; default: that of `net`.
        conditions: Conditions by name besides the classes: a tensor or a list with one row per seed, or one value for
            all, such as a number, an image of Pillow or a text (`edm2.sampling.conditions`).
        sampling_options: Passed to the sampler, such as num_steps=32; it checks them with the first batch.

    Raises:
        ValueError: a class outside the network's, a wrong number of classes or of conditions, guidance without a guide
            or by one for other images or classes, an empty interval, or batch_size < 1; before anything is drawn.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if guide is None and guidance != 1:
        raise ValueError(f"guidance={guidance} needs a network to guide away from: give guide")
    if isinstance(guide, Precond | ExternalNetwork):
        check_guide(net, guide)
    seeds = [index(seed) for seed in seeds]
    if conditions is not None:
        conditions = rows_of_conditions(getattr(net.config, "conditions", ()), conditions, len(seeds))
    chosen = _chosen_classes(classes, len(seeds), net.config.label_dim)
    denoise = net if guide is None else guided(net, guide, guidance, interval)
    device = next(itertools.chain(net.buffers(), net.parameters())).device if device is None else torch.device(device)

    def batches() -> Iterator[SampleBatch]:
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            random, noise, labels = _draw_inputs(net, seeds[part], None if chosen is None else chosen[part])
            given = {}
            if conditions is not None:
                given["conditions"] = {name: values[part].to(device) for name, values in conditions.items()}
            samples = sampler(
                denoise,
                noise.to(device),
                None if labels is None else labels.to(device),
                randn_like=random.randn_like,
                **given,
                **sampling_options,
            )
            yield SampleBatch(tuple(seeds[part]), labels, samples)

    return batches()


def require_finite(batches: Iterable[SampleBatch], network: str = "the network") -> Iterator[SampleBatch]:
    """Pass batches on up to one that is not finite, which a decoder would turn into black pixels.

    Raises:
        SamplingError: samples that are not finite.
    """
    for batch in batches:
        finite = batch.samples.flatten(1).isfinite().all(dim=1).tolist()
        if not all(finite):
            broken = [str(seed) for seed, is_finite in zip(batch.seeds, finite, strict=True) if not is_finite]
            shown = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
            raise SamplingError(
                f"{network}: seeds {shown} give samples that are not finite: "
                "draw with --precision fp32 or bf16; if that does not help, its weights are broken"
            )
        yield batch


def classes_of_seeds(
    net: SampledNetwork, seeds: Sequence[int], classes: int | Sequence[int] | None = None, batch_size: int = 64
) -> Tensor | None:
    """Classes of the images that `generate` draws for the same arguments, without drawing them.

    Returns:
        int64 [N], or None for a network without classes.

    Raises:
        ValueError: as `generate`, about classes.
    """
    chosen = _chosen_classes(classes, len(seeds), net.config.label_dim)
    if net.config.label_dim == 0:
        return None
    if chosen is not None:
        return torch.tensor(chosen, dtype=torch.int64)
    parts = [seeds[start : start + batch_size] for start in range(0, len(seeds), batch_size)]
    drawn = (_draw_inputs(net, part, None)[2] for part in parts)
    return torch.cat([torch.zeros(0, dtype=torch.int64), *(labels for labels in drawn if labels is not None)])


def check_guide(net: Drawing, guide: Drawing, net_name: str = "this network", guide_name: str = "the guide") -> None:
    """Raise ValueError unless both draw images of one shape and have equally many classes, or one of them none."""
    a, b = _config(net), _config(guide)
    same_classes = a.label_dim == b.label_dim or 0 in (a.label_dim, b.label_dim)
    if not same_classes or (a.img_channels, a.size) != (b.img_channels, b.size):
        raise ValueError(f"{guide_name} cannot guide {net_name}: it draws {_kind(guide)}, not {_kind(net)}")


def _config(net: Drawing) -> NetworkConfig | DrawnImages:
    """Configuration of a network; the attribute `config` of those of a pipeline is in diffusers' form."""
    return net.unet.config if isinstance(net, Precond) else net.config


def _kind(net: Drawing) -> str:
    """Shape and number of classes of a network's images, as text."""
    config = _config(net)
    height, width = config.size
    return f"{config.img_channels}x{height}x{width} of {config.label_dim or 'no'} classes"


def class_index(label: int | str, names: Sequence[str]) -> int:
    """Find a class by name, else by number, which is not checked against the network.

    Where all names are numbers (folders called 1 to 12), a number is a name.

    Raises:
        ValueError: neither a name nor a number, or a number where all names are others.
    """
    known = [unicodedata.normalize("NFC", name) for name in names]
    text = unicodedata.normalize("NFC", str(label))
    if text in known:
        return known.index(text)
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "without names"
    try:
        number = int(label)
    except ValueError:
        raise ValueError(f"class {label!r} is neither a number nor one of the network's classes ({shown})") from None
    if number >= 0 and names and all(name.isdecimal() for name in known):
        raise ValueError(f"class {label} is none of the network's classes, whose names are numbers: {shown}")
    return number


def drawn_by_default(net: SampledNetwork) -> list[int]:
    """Classes of a network that are drawn unless others are asked for: those that had images in training."""
    return [c for c in range(net.config.label_dim) if c not in net.empty_classes]


def random_classes(draw: Callable[[int], Tensor], label_dim: int, empty: Sequence[int]) -> Tensor:
    """Draw a class per image, int64 [N]; where it is one of the empty ones, another is drawn in its place.

    Args:
        draw: Draws one integer below its argument per image.
        label_dim: Number of classes.
        empty: Classes that had no image in training.
    """
    drawn = draw(label_dim)
    if not empty:
        return drawn
    others = torch.tensor([c for c in range(label_dim) if c not in empty])
    return torch.where(torch.isin(drawn, torch.tensor(empty)), others[draw(len(others))], drawn)


def _draw_inputs(
    net: SampledNetwork, seeds: Sequence[int], chosen: Sequence[int] | None
) -> tuple[SeedRandom, Tensor, Tensor | None]:
    """Generators of a batch, its noise [N, C, H, W] and its classes [N], drawn in this order."""
    random = SeedRandom(seeds)
    noise = random.randn((net.config.img_channels, *net.config.size))
    if net.config.label_dim == 0:
        return random, noise, None
    # Drawn even if classes are chosen, so that churn draws the same.
    drawn = random_classes(random.randint, net.config.label_dim, net.empty_classes)
    return random, noise, drawn if chosen is None else torch.tensor(chosen)


def _chosen_classes(classes: int | Sequence[int] | None, count: int, label_dim: int) -> list[int] | None:
    """One class per image, checked, or None to draw them."""
    if classes is None:
        return None
    chosen = [index(classes)] * count if isinstance(classes, int | Integral) else [index(c) for c in classes]
    if len(chosen) != count:
        raise ValueError(f"{len(chosen)} classes for {count} seeds: give one class, or one per seed")
    if label_dim == 0:
        raise ValueError("this network has no classes: it was trained without labels")
    for c in chosen:
        if not 0 <= c < label_dim:
            raise ValueError(f"class {c} does not exist: this network knows classes 0 to {label_dim - 1}")
    return chosen
