"""The description of a network, complete enough to build it again; stored as JSON in every snapshot."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from edm2.networks.conditions import Condition, ImageCondition, condition_from_json, noise_level

Config = TypeVar("Config")

CONFIGS = "ABCDEFG"
"""Configurations of the paper's ladder (Table 1)."""

FIELDS_OF_CONFIGS = {
    "label_balance": "G",
    "concat_balance": "G",
    "res_balance": "G",
    "attn_balance": "G",
    "conditions": "G",
    "label_source": "G",
    "target_level": "G",
    "fourier_bandwidth": "G",
    "normalized_modulation": "G",
    "channels_per_group": "ABCDE",
}
"""Fields that mean something in some configurations only."""

TARGET_LEVELS = ("mean", "decoder")
"""Ways to tell a flow map its second level: the mean of both levels' embeddings in all blocks, or to the decoder."""

LATER = ("conditions", "label_source", "target_level", "fourier_bandwidth", "normalized_modulation")
"""Fields that JSON leaves out where they have their default: files of networks without them are as they always were."""


@dataclass(frozen=True)
class NetworkConfig:
    """Every choice that shapes a network. Defaults are those of the paper's S size (Table 6)."""

    img_resolution: int | tuple[int, int]
    """Height and width of what the network sees; an int means a square."""
    img_channels: int
    """Channels of what the network sees: 4 for SD-VAE latents, 3 for RGB."""
    label_dim: int
    """Number of classes; 0 for an unconditional network."""
    config: str = "G"
    """Configuration of the paper's ladder (Table 1), A to G."""
    sigma_data: float = 0.5
    """Standard deviation of the data that the network is trained on."""
    logvar_channels: int = 128
    """Fourier features of the uncertainty u(sigma)."""
    model_channels: int = 192
    """Base width; multiplied per level by `channel_mult`."""
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    """Width of each level in multiples of `model_channels`; each level after the first halves the resolution."""
    channel_mult_noise: int | None = None
    """Width of the Fourier features of the noise level in multiples of `model_channels`; None: the first level's."""
    channel_mult_emb: int | None = None
    """Width of the embedding in multiples of `model_channels`; None: the widest level's."""
    num_blocks: int = 3
    """Residual blocks per level in the encoder, 0 for none; the decoder has one more."""
    attn_resolutions: tuple[int, ...] = (16, 8)
    """Resolutions (larger side) at which blocks have attention."""
    channels_per_head: int = 64
    """Channels of an attention head."""
    channels_per_group: int | None = None
    """Channels of a group in the group norms of configs A to E; None: as in EDM, C / min(32, C / 4) of C channels."""
    dropout: float = 0.0
    """Dropout probability inside the residual branches."""
    resample_filter: tuple[float, ...] = (1, 1)
    """Taps of the filter that halves and doubles the resolution."""
    label_balance: float = 0.5
    """Share of the label in the embedding's MP-sum (config G)."""
    concat_balance: float = 0.5
    """Share of the skip connection in the decoder's MP-cat (config G)."""
    res_balance: float = 0.3
    """Share of the residual branch in a block's MP-sum (config G)."""
    attn_balance: float = 0.3
    """Share of the attention branch in its MP-sum (config G)."""
    clip_act: float | None = 256.0
    """Bound on activations that leave a block; None for none."""
    conditions: tuple[Condition, ...] = ()
    """Conditions besides the class (config G); see `edm2.networks.conditions`."""
    label_source: bool = False
    """Let the class be one of the sources of the embedding's n-ary MP-sum, in place of the published sum of two terms
    (config G)."""

    target_level: str | None = None
    """Blocks that get the level at which a flow map arrives (config G): one of `TARGET_LEVELS`; None for a denoiser."""
    fourier_bandwidth: float = 1.0
    """Standard deviation of the frequencies of the noise level's Fourier features (Eq. 75); below 1 smoother, which
    steadies consistency training at scale (arXiv 2410.11081) and has to be trained in (config G)."""
    normalized_modulation: bool = False
    """Divide a block's modulation by its root mean square over channels, for the same reason (config G)."""

    def __post_init__(self) -> None:
        for field in ("img_resolution", "channel_mult", "attn_resolutions", "resample_filter"):
            if isinstance(getattr(self, field), list):  # JSON has no tuples
                object.__setattr__(self, field, tuple(getattr(self, field)))
        object.__setattr__(self, "conditions", tuple(map(_as_condition, self.conditions)))
        self._check_config()
        self._check_conditions()
        least = {"img_channels": 1, "logvar_channels": 1, "model_channels": 1, "num_blocks": 0, "channels_per_head": 1}
        for field, value in least.items():
            if getattr(self, field) < value:
                raise ValueError(f"{field}={getattr(self, field)} must be at least {value}")
        for field in ("channel_mult_noise", "channel_mult_emb", "channels_per_group"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1, or None for the default")
        if not isinstance(self.img_resolution, int) and len(self.img_resolution) != 2:
            raise ValueError(f"img_resolution={self.img_resolution} must be one number, or (height, width)")
        if not self.resample_filter or len(self.resample_filter) % 2 or sum(self.resample_filter) == 0:
            raise ValueError(f"resample_filter={self.resample_filter} must have an even number of taps and a sum")
        if self.label_dim < 0:
            raise ValueError(f"label_dim={self.label_dim} must be 0 (no classes) or more")
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult={self.channel_mult} must list at least one positive multiplier")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        divisor = 1 << (len(self.channel_mult) - 1)
        if any(side < divisor or side % divisor for side in self.size):
            height, width = self.size
            raise ValueError(
                f"resolution {height}x{width} cannot be halved {len(self.channel_mult) - 1} times: "
                f"both sides must be multiples of {divisor}, or channel_mult={self.channel_mult} shorter"
            )

    def _check_config(self) -> None:
        """A field that the configuration does not use must not look as if it did something; factors are positive."""
        if self.config not in tuple(CONFIGS):
            raise ValueError(f"config={self.config!r} is unknown; there are {', '.join(CONFIGS)}")
        for field, configs in FIELDS_OF_CONFIGS.items():
            value, default = getattr(self, field), type(self).__dataclass_fields__[field].default
            if self.config not in configs and value != default:
                where = f"config {configs}" if len(configs) == 1 else f"configs {configs[0]} to {configs[-1]}"
                raise ValueError(
                    f"{field}={value} would change nothing in config {self.config}, only in {where}; "
                    f"leave it at {default}"
                )

        for field in ("sigma_data", "fourier_bandwidth"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field}={getattr(self, field)} must be positive")

    def _check_conditions(self) -> None:
        names = [condition.name for condition in self.conditions]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"condition {repeated[0]} is described twice; each has a name of its own")
        for condition in self.conditions:
            if isinstance(condition, ImageCondition) and condition.noise and noise_level(condition).name not in names:
                raise ValueError(f"condition {condition.name} has noise, whose level is not among the conditions")
        if self.label_source and not self.label_dim:
            raise ValueError("label_source needs classes")
        if self.target_level not in (None, *TARGET_LEVELS):
            raise ValueError(f"target_level={self.target_level!r} must be None or one of {', '.join(TARGET_LEVELS)}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what the network sees."""
        side = self.img_resolution
        return (side, side) if isinstance(side, int) else (side[0], side[1])

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the full resolution first."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    @property
    def noise_channels(self) -> int:
        """Fourier features of the noise level."""
        return self.model_channels * (self.channel_mult_noise or self.channel_mult[0])

    @property
    def emb_channels(self) -> int:
        """Width of the embedding."""
        return self.model_channels * (self.channel_mult_emb or max(self.channel_mult))

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; `from_json` is its inverse."""
        values = dataclasses.asdict(self)
        values["conditions"] = [condition.to_json() for condition in self.conditions]
        defaults = {name: self.__dataclass_fields__[name].default for name in LATER}
        defaults["conditions"] = []
        return {name: value for name, value in values.items() if name not in LATER or value != defaults[name]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NetworkConfig:
        """Build from `to_json`'s dict.

        Raises:
            ValueError: an unknown or missing field, or a value out of range.
        """
        return dataclass_from_json(cls, values, "network configuration")


def _as_condition(value: Any) -> Condition:
    return value if isinstance(value, Condition) else condition_from_json(value)


def dataclass_from_json(cls: type[Config], values: dict[str, Any], what: str) -> Config:
    """A configuration from a dict of its fields.

    Args:
        cls: A dataclass.
        values: Its fields by name, those with defaults optional.
        what: How to call it in errors.
    """
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # Config may be any dataclass
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{what} has unknown fields {unknown}; was it written by a newer version?")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{what} is incomplete or malformed: {error}") from None
