"""Codecs: the way from stored data to what the network sees, and back.

Networks and preconditioning expect data with mean 0 and standard deviation sigma_data (0.5 in the paper, arXiv
2312.02696v2). A codec belongs to the dataset it was made for and travels with every snapshot, as JSON.
Dimensions: N images, C channels, H rows, W columns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from edm2.training.imports import is_target


class Codec(Protocol):
    """Way from stored data to the network's input, and from the network's output to pixels."""

    def encode(self, data: Tensor, noise: Tensor | None = None) -> Tensor:
        """Data [N, C, H, W] as a dataset returns them -> float32 input of the network, on the same device.

        `noise` draws a latent from its distribution; pixels have none and ignore it.
        """

    def decode(self, x: Tensor, batch_size: int = 8) -> Tensor:
        """Output of the network [N, C, H, W], any float type -> uint8 pixels.

        A codec that needs much memory for it decodes `batch_size` images at a time.
        """

    def to_display(self, pixels: Tensor) -> Tensor:
        """Pixels as `decode` returns them -> uint8 with 256 levels, as image files want them."""

    def to_json(self) -> dict[str, Any]:
        """JSON that `codec_from_json` turns into an equal codec."""


@dataclass(frozen=True)
class _Standardizing:
    """A shift and a scale for each channel."""

    mean: tuple[float, ...]
    """What becomes 0: one per channel, or of pixels one for all."""

    std: tuple[float, ...]
    """What becomes a unit of the network's input: likewise."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if not all(map(math.isfinite, self.mean)) or not 0 < len(self.mean) == len(self.std):
            raise ValueError(f"mean={self.mean} and std={self.std} must hold a finite number per channel")
        if not all(0 < s < math.inf for s in self.std):
            raise ValueError(f"std={self.std} must be positive: a channel that never varies has nothing to learn from")

    def network_channels(self, data_channels: int) -> int:
        """Same number as the data has. Raises ValueError if the codec was made for another one."""
        if len(self.mean) != data_channels:
            raise ValueError(f"a codec for {len(self.mean)} channels cannot serve data with {data_channels}")
        return data_channels


@dataclass(frozen=True)
class PixelCodec(_Standardizing):
    """Pixels as they are, shifted and scaled.

        encode: x / std - mean / std        decode: x std + mean, rounded to the nearest of the levels

    The default maps 0..255 to -1..1.
    """

    mean: tuple[float, ...] = (127.5,)
    std: tuple[float, ...] = (127.5,)

    levels: int = 256
    """Number of values that a pixel can take, from 0; at most 256."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels={self.levels} must be between 2 and 256, what 8 bits hold")

    @classmethod
    def standardized(
        cls, mean: Sequence[float], std: Sequence[float], levels: int = 256, sigma_data: float = 0.5
    ) -> "PixelCodec":
        """Codec that gives pixels with this mean and standard deviation mean 0 and standard deviation `sigma_data`."""
        return cls(tuple(mean), tuple(s / sigma_data for s in std), levels)

    def encode(self, data: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 [N, C, H, W] -> float32, the same shape."""
        self.network_channels(data.shape[-3])
        shift = tuple(m / s for m, s in zip(self.mean, self.std, strict=True))
        return data.to(torch.float32) / per_channel(self.std, data.device) - per_channel(shift, data.device)

    def decode(self, x: Tensor, batch_size: int = 8) -> Tensor:
        """Float [N, C, H, W] -> uint8, the same shape: nearest level, 0 for NaN. All images at once."""
        self.network_channels(x.shape[-3])
        to_truncate = tuple(m + 0.5 for m in self.mean)
        level = x.to(torch.float32) * per_channel(self.std, x.device) + per_channel(to_truncate, x.device)
        # Casting NaN to an integer is undefined; the clip has dealt with infinities.
        return level.clip(0, self.levels - 1).nan_to_num(nan=0).to(torch.uint8)

    def to_display(self, pixels: Tensor) -> Tensor:
        """uint8 levels -> uint8 0..255, the top level becoming 255."""
        top = self.levels - 1
        return ((pixels.to(torch.int32) * 510 + top) // (2 * top)).to(torch.uint8)

    def network_channels(self, data_channels: int) -> int:
        """Same number as the data has; one mean serves any. Raises ValueError if the codec was made for another one."""
        return data_channels if len(self.mean) == 1 else super().network_channels(data_channels)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "pixels", **asdict(self)}


@dataclass(frozen=True)
class ValueCodec(_Standardizing):
    """Floats of any range, such as measurements, shifted and scaled.

        encode: (x - mean) / std        decode: x std + mean

    Pictures show mean ± 2 standard deviations of the data from black to white, of the first channel unless there are
    three.
    """

    sigma_data: float = 0.5
    """Standard deviation of the data as the network sees them."""

    @classmethod
    def standardized(cls, mean: Sequence[float], std: Sequence[float], sigma_data: float = 0.5) -> "ValueCodec":
        """Codec that gives values with this mean and standard deviation mean 0 and standard deviation `sigma_data`."""
        return cls(tuple(mean), tuple(s / sigma_data for s in std), sigma_data)

    def encode(self, data: Tensor, noise: Tensor | None = None) -> Tensor:
        """Float [N, C, H, W] -> float32, the same shape."""
        self.network_channels(data.shape[-3])
        return (data.to(torch.float32) - per_channel(self.mean, data.device)) / per_channel(self.std, data.device)

    def decode(self, x: Tensor, batch_size: int = 8) -> Tensor:
        """Float [N, C, H, W] -> float32 values, the same shape."""
        self.network_channels(x.shape[-3])
        return x.to(torch.float32) * per_channel(self.std, x.device) + per_channel(self.mean, x.device)

    def to_display(self, pixels: Tensor) -> Tensor:
        """Values -> uint8 [N, 1 or 3, H, W]."""
        shown = self.encode(pixels) / (4 * self.sigma_data) + 0.5
        shown = shown if shown.shape[-3] == 3 else shown[..., :1, :, :]
        return (shown.clip(0, 1).nan_to_num(nan=0) * 255).round().to(torch.uint8)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "values", **asdict(self)}


def _latent_codec(**fields: Any) -> Codec:
    from edm2.training.data.vae import LatentCodec  # here: it imports this module

    return LatentCodec(**fields)


CODECS: dict[str, Callable[..., Codec]] = {"pixels": PixelCodec, "values": ValueCodec, "latents": _latent_codec}
"""Codecs by the `kind` in their JSON: functions of the other fields. One of your own is found by its entry here, which
`--codec` makes (`own_codec`)."""


def codec_from_json(description: dict[str, Any]) -> Codec:
    """Inverse of `Codec.to_json`.

    Raises:
        ValueError: Unknown kind, or fields that do not fit it.
    """
    fields = dict(description) if isinstance(description, dict) else {}
    kind = fields.pop("kind", None)
    if isinstance(kind, str) and kind not in CODECS and is_target(kind):  # a stranger's file must not name programs
        raise ValueError(f"decodes by the program {kind}: edm2 generate and sweep run it with --codec {kind}")
    if not isinstance(kind, str) or kind not in CODECS:
        raise ValueError(f"unknown kind of codec {kind!r}: this version knows {', '.join(CODECS)}")
    try:
        return CODECS[kind](**fields)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"codec of kind {kind!r}: {error}") from error


def are_alike(one: Any, other: Any) -> bool:
    """True if two descriptions of codecs are equal up to rounding.

    Statistics of the same images differ in the last digits between machines and versions of numpy.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(are_alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(are_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


@lru_cache(maxsize=64)
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values as float32 [C, 1, 1]. Cached per device: a copy to a GPU would wait for all work queued there."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
