"""Conditions beside the class: vectors, scalars, images and tokens. Their descriptions, and the layers that take them.

A network's conditions are listed in `NetworkConfig.conditions` and given by name, in the units of the dataset, whose
mean and standard deviation the description holds. **NaN means absent**: a vector, scalar or image with NaN in it is not
there, and a token with NaN is padding. A condition that is not given is absent for all images.

    vector, scalar    a source of the embedding: MPConv, after Fourier features for a scalar       `SourceEmbedding`
    image             channels beside c_in x, never multiplied by c_in: it matters most at high noise
    tokens            cross-attention in the blocks that have self-attention                       `CrossAttention`

Shapes: N images, C channels, H by W pixels, L tokens, E embedding width.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.attention import cross_attention
from edm2.networks.layers import MPConv, MPFourier

Prepared: TypeAlias = tuple[Tensor, Tensor]
"""Standardized values, and their presence. Of sources of the embedding 0 where absent, and 1 or 0 [N, 1]; of images 1
where absent, and a mask of 1 or -1 [N, 1, H, W]; of tokens 0 where absent, and True or False [N, L]."""

# ----------------------------------------------------------------------------------------------------------------------
# Descriptions


@dataclass(frozen=True)
class Condition(ABC):
    """Description of a condition; the base of all kinds."""

    name: str
    """Name by which it is given: letters, digits and _."""
    mean: tuple[float, ...] = field(default=(), kw_only=True)
    """Mean over the dataset, one number per channel; empty: values come standardized."""
    std: tuple[float, ...] = field(default=(), kw_only=True)
    """Standard deviation over the dataset, likewise."""
    dropout: float = field(default=0.0, kw_only=True)
    """Fraction of images that are trained without it; 0: the network needs it."""

    kind: ClassVar[str]
    """Name of the kind in JSON."""
    channel_dim: ClassVar[int] = 1
    """Dimension that mean and std are of."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))  # JSON has no tuples
        where = f"condition {self.name}"
        if not re.fullmatch(r"[A-Za-z]\w*", self.name, re.ASCII) or hasattr(nn.ModuleDict, self.name):
            raise ValueError(f"{where}: choose another name, of letters, digits and _")
        if self.channels < 1 or len(self.mean) != len(self.std) or len(self.mean) not in (0, self.channels):
            raise ValueError(f"{where}: {self.channels} channels, {len(self.mean)} means, {len(self.std)} deviations")
        if not all(map(math.isfinite, self.mean)) or not all(0 < s < math.inf for s in self.std):
            raise ValueError(f"{where}: mean={self.mean} and std={self.std} must be finite, and std positive")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"{where}: dropout={self.dropout} must lie between 0 and 1")

    @property
    @abstractmethod
    def channels(self) -> int:
        """Numbers per vector, pixel or token."""

    @abstractmethod
    def shape(self, count: int) -> tuple[int | None, ...]:
        """Shape of the values of `count` images; None where any size will do."""

    def absent(self, count: int, device: torch.device | str | None = None) -> Tensor:
        """Values that say that the condition is absent, for `count` images."""
        return torch.full([1 if side is None else side for side in self.shape(count)], torch.nan, device=device)

    def check(self, values: Tensor, count: int) -> None:
        """Raise ValueError unless `values` are the condition of `count` images."""
        shape = self.shape(count)
        if values.ndim != len(shape) or any(b not in (None, a) for a, b in zip(values.shape, shape, strict=True)):
            wanted = ", ".join("any" if side is None else str(side) for side in shape)
            raise ValueError(f"condition {self.name}: values are {list(values.shape)}, but must be [{wanted}]")

    def prepare(self, values: Tensor | None, x: Tensor) -> Prepared:
        """Standardize the values for images x [N, C, H, W], in their dtype.

        Raises:
            ValueError: it is needed and not given, or of another shape.
        """
        if values is None:
            if not self.dropout:
                raise ValueError(
                    f"condition {self.name} is needed: the network was trained with it for every image; give {self}"
                )
            values = self.absent(len(x), x.device)
        self.check(values, len(x))
        values = values.to(x.device, x.dtype)
        there = ~values.isnan()
        if self.mean:
            shape = [-1 if dim == self.channel_dim else 1 for dim in range(values.ndim)]
            mean, std = (constant(numbers, x.device, x.dtype).view(shape) for numbers in (self.mean, self.std))
            values = (values - mean) / std
        return values, there

    @abstractmethod
    def __str__(self) -> str:
        """Phrase that says what it is."""

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; `condition_from_json` is its inverse."""
        return {"kind": self.kind, **asdict(self)}


class EmbeddedCondition(Condition):
    """A condition that is a source of the embedding."""

    def prepare(self, values: Tensor | None, x: Tensor) -> Prepared:
        """[N, channels], and [N, 1]."""
        values, there = super().prepare(values, x)
        there = there.all(dim=1, keepdim=True)
        return torch.where(there, values, 0), there.to(x.dtype)

    @abstractmethod
    def layer(self, noise_channels: int, emb_channels: int) -> nn.Module:
        """Layer from [N, channels] to the embedding [N, E], which preserves magnitude."""


@dataclass(frozen=True)
class VectorCondition(EmbeddedCondition):
    """A vector per image, such as attributes or an embedding: [N, size]."""

    size: int
    """Numbers per vector."""

    kind: ClassVar[str] = "vector"

    @property
    def channels(self) -> int:
        return self.size

    def shape(self, count: int) -> tuple[int | None, ...]:
        return count, self.size

    def __str__(self) -> str:
        return f"a vector of {self.size} numbers"

    def layer(self, noise_channels: int, emb_channels: int) -> nn.Module:
        return MPConv(self.size, emb_channels)  # a standardized vector has unit magnitude on average


@dataclass(frozen=True)
class ScalarCondition(EmbeddedCondition):
    """A number per image, such as an age: [N] or [N, 1]."""

    kind: ClassVar[str] = "scalar"

    @property
    def channels(self) -> int:
        return 1

    def shape(self, count: int) -> tuple[int | None, ...]:
        return count, 1

    def check(self, values: Tensor, count: int) -> None:
        super().check(values[:, None] if values.ndim == 1 else values, count)

    def prepare(self, values: Tensor | None, x: Tensor) -> Prepared:
        values = values[:, None] if values is not None and values.ndim == 1 else values
        return super().prepare(values, x)

    def __str__(self) -> str:
        return "a number"

    def layer(self, noise_channels: int, emb_channels: int) -> nn.Module:
        # A quarter of the bandwidth of c_noise = ln(sigma) / 4, as the number comes with standard deviation 1.
        return nn.Sequential(FourierOfScalar(noise_channels, bandwidth=0.25), MPConv(noise_channels, emb_channels))


@dataclass(frozen=True)
class ImageCondition(Condition):
    """An image per image, such as a low resolution or a map: [N, img_channels, any, any], resized to the network's."""

    img_channels: int
    """Channels."""
    noise: float = field(default=0.0, kw_only=True)
    """Largest standard deviation of the noise that it is trained with, in units of its own; the level is then one more
    condition, the scalar `NAME_noise` (cascades)."""

    kind: ClassVar[str] = "image"

    @property
    def channels(self) -> int:
        return self.img_channels

    @property
    def input_channels(self) -> int:
        """Channels beside the noisy image: its own, and a mask where it can be absent."""
        return self.img_channels + bool(self.dropout)

    def shape(self, count: int) -> tuple[int | None, ...]:
        return count, self.img_channels, None, None

    def prepare(self, values: Tensor | None, x: Tensor) -> Prepared:
        """[N, img_channels, H, W] and [N, 1, H, W], for images x of that size: repeated or averaged by a box filter.

        An absent one is an image of ones, and the mask says so: the input has unit magnitude either way.
        """
        values, there = super().prepare(values, x)
        there = there.flatten(1).all(dim=1).view(-1, 1, 1, 1)
        values = torch.where(there, values, 1)
        if values.shape[2:] != x.shape[2:]:
            values = F.interpolate(values, x.shape[2:], mode="area")
        return values, (2 * there.to(x.dtype) - 1).expand(-1, 1, *x.shape[2:])

    def input(self, prepared: Prepared, dtype: torch.dtype) -> Tensor:
        """Channels beside the noisy image: [N, input_channels, H, W]."""
        values, there = prepared
        return torch.cat([values, there], dim=1).to(dtype) if self.dropout else values.to(dtype)

    def __str__(self) -> str:
        return f"an image of {self.img_channels} channel{'s' if self.img_channels > 1 else ''}"


@dataclass(frozen=True)
class TokenCondition(Condition):
    """A sequence of tokens per image, such as a text's: [N, L, size]; shorter ones are padded by NaN."""

    size: int
    """Numbers per token."""
    length: int = field(default=0, kw_only=True)
    """Largest number of tokens in training; 0: any number may be given."""
    encoder: str | None = field(default=None, kw_only=True)
    """Text encoder that they were made with: a hub id or a folder."""

    kind: ClassVar[str] = "tokens"
    channel_dim: ClassVar[int] = 2

    @property
    def channels(self) -> int:
        return self.size

    def shape(self, count: int) -> tuple[int | None, ...]:
        return count, None, self.size

    def check(self, values: Tensor, count: int) -> None:
        super().check(values, count)
        if self.length and values.shape[1] > self.length:
            raise ValueError(
                f"condition {self.name}: {values.shape[1]} tokens, but the network was trained with at most "
                f"{self.length}; shorten it"
            )

    def prepare(self, values: Tensor | None, x: Tensor) -> Prepared:
        """[N, L, size] and [N, L]."""
        values, there = super().prepare(values, x)
        there = there.all(dim=2)
        return torch.where(there[:, :, None], values, 0), there

    def __str__(self) -> str:
        most = f"at most {self.length} " if self.length else ""
        return f"{most}tokens of {self.size} numbers"


KINDS: dict[str, type[Condition]] = {
    kind.kind: kind for kind in (VectorCondition, ScalarCondition, ImageCondition, TokenCondition)
}
"""Kinds of conditions by their names in JSON. One of your own is found by its entry here."""


def condition_from_json(values: Any) -> Condition:
    """Inverse of `Condition.to_json`."""
    fields = dict(values) if isinstance(values, Mapping) else {}
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of condition {kind!r}: this version knows {', '.join(KINDS)}")
    try:
        return KINDS[kind](**fields)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"condition of kind {kind!r}: {error}") from None


def noise_level(condition: ImageCondition) -> ScalarCondition:
    """Description of the level of noise on an image condition, uniform from 0 to its largest."""
    name, most = f"{condition.name}_noise", condition.noise
    return ScalarCondition(name, mean=(most / 2,), std=(most / math.sqrt(12),), dropout=condition.dropout)


def noise_levels(known: Iterable[Condition]) -> list[str]:
    """Names of the conditions that are levels of noise on images, which no dataset has."""
    return [noise_level(c).name for c in known if isinstance(c, ImageCondition) and c.noise]


def prepare(known: Iterable[Condition], given: Mapping[str, Tensor], x: Tensor) -> dict[str, Prepared]:
    """Standardize conditions for images x [N, C, H, W].

    Args:
        known: Conditions of the network.
        given: Values by name.
        x: The images, in the dtype of the embedding.
    """
    by_name = {condition.name: condition for condition in known}
    if unknown := sorted(set(given) - set(by_name)):
        takes = ", ".join(f"{name} ({condition})" for name, condition in by_name.items()) or "none but classes"
        raise ValueError(f"unknown conditions {', '.join(unknown)}: this network takes {takes}")
    given = dict(given)
    for name, condition in by_name.items():
        if isinstance(condition, ImageCondition) and condition.noise and name in given:
            given |= _with_noise_level(condition, given, x)
    return {name: condition.prepare(given.get(name), x) for name, condition in by_name.items()}


def _with_noise_level(condition: ImageCondition, given: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """An image condition of unit magnitude with any noise, and the level of that, 0 unless it is given."""
    described = noise_level(condition)
    values, level = given[condition.name], given.get(described.name, x.new_zeros(len(x)))
    condition.check(values, len(x))
    described.check(level, len(x))
    values, level = values.to(x), level.to(x).view(-1, 1, 1, 1)
    mean = constant(condition.mean or (0.0,), x.device, x.dtype).view(-1, 1, 1)
    absent = values.flatten(1).isnan().any(dim=1)
    return {
        condition.name: mean + (values - mean) * (1 + level**2).rsqrt(),
        described.name: level.flatten().masked_fill(absent, torch.nan),
    }


def constant(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers as a tensor; cached per device, as a copy to a GPU would wait for all work queued there."""
    if torch.compiler.is_compiling():  # which makes constants of it
        return torch.tensor(numbers, device=device, dtype=dtype)
    return _cached_constant(numbers, device, dtype)


@lru_cache(maxsize=64)
def _cached_constant(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(numbers, device=device, dtype=dtype)


# ----------------------------------------------------------------------------------------------------------------------
# Layers


class FourierOfScalar(MPFourier):
    """Fourier features of [N, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1] -> [N, num_channels]."""
        return super().forward(x.flatten())


class SourceEmbedding(nn.Module):
    """A source of the embedding with its learned gain.

    Args:
        layer: From the condition's values to [N, E], of unit magnitude.

    Attributes:
        gain: g, 1 in a fresh network; 0 where the source is added to a trained one.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.gain = nn.Parameter(torch.ones([]))

    def forward(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Return e [N, E] and its weight in the sum [N, 1]: the gain, or 0 where the source is absent."""
        values, there = prepared
        return self.layer(values), self.gain * there


def mp_sum_of_sources(e_0: Tensor, sources: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """MP-sum of any number of branches with weights of their own (Eq. 88 for more than two).

        e = (e_0 + sum g_i e_i) / sqrt(1 + sum g_i²)

    A source of weight 0 leaves both sums, so e has unit magnitude whatever is present.

    Args:
        e_0: The branch that is always there, [N, E].
        sources: Branches [N, E], each with its weights [N, 1].
    """
    total, square = e_0, torch.ones_like(e_0[:, :1])
    for e, g in sources:
        total, square = total + g * e, square + g**2
    return total / square.sqrt()


class TokenContext(nn.Module):
    """Tokens with a learned one of unit magnitude behind them, which alone remains when the condition is absent.

    Zeros in its place would make the output of cross-attention zero, and shrink the sum.

    Args:
        size: Numbers per token.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.unit = MPConv(size, 1, scale=math.sqrt(size))  # its one row is the token

    def forward(self, prepared: Prepared, dtype: torch.dtype) -> Prepared:
        """Tokens [N, L, size] and presence [N, L] -> [N, L + 1, size] in `dtype`, and [N, L + 1]."""
        tokens, there = prepared
        basis = torch.eye(tokens.shape[2], device=tokens.device, dtype=tokens.dtype)
        unit = self.unit(basis).mT.expand(len(tokens), 1, -1)  # the row, whichever form the layer keeps it in
        return torch.cat([tokens, unit], dim=1).to(dtype), F.pad(there, (0, 1), value=True)


class CrossAttention(nn.Module):
    """Cosine attention of pixels to tokens, merged by a gated MP-sum.

        x <- (x + g y) / sqrt(1 + g²)

    Args:
        channels: Channels C of the image.
        size: Numbers per token.
        num_heads: Number of heads.

    Attributes:
        gate: g, 0 at first: a network starts as the same one without.
    """

    def __init__(self, channels: int, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = MPConv(channels, channels, (1, 1))
        self.kv = MPConv(size, 2 * channels)
        self.proj = MPConv(channels, channels, (1, 1))
        self.gate = nn.Parameter(torch.zeros([]))

    def forward(self, x: Tensor, context: Prepared) -> Tensor:
        """[N, C, H, W], tokens [N, L, size] and their presence [N, L] -> [N, C, H, W]."""
        tokens, there = context
        y = self.proj(cross_attention(self.q(x), self.kv(tokens), self.num_heads, there))
        g = self.gate.to(x.dtype)
        return (x + g * y) * (1 + g**2).rsqrt()
