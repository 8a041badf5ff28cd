"""The description of a run, complete enough to repeat it; stored as config.json in the run's folder."""

from __future__ import annotations

import dataclasses
import math
import types
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch

from edm2.networks import NetworkConfig
from edm2.networks.config import dataclass_from_json
from edm2.post_hoc_ema import sigma_rel_to_gamma
from edm2.training.loss.by_name import make_weighting, noise_distribution
from edm2.training.loss.objective import DenoisingLoss

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by their names here."""

CHANGEABLE = frozenset(
    {
        "checkpoint_every",
        "compile",
        "detect_anomaly",
        "device",
        "diagnostics_every",
        "duration",
        "holdout_every",
        "keep_checkpoints",
        "keep_snapshots",
        "max_nonfinite_steps",
        "micro_batch",
        "out",
        "patience",
        "recompute",
        "skip_broken",
        "sample_every",
        "shard",
        "snapshot_every",
        "status_every",
        "workers",
    }
)
"""Fields that may differ when a run is resumed: they do not change what is computed, or only how long."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One run. Counts are in images seen; defaults are those of the paper's ImageNet-512 models (Table 6)."""

    data: str
    """Dataset: "digits", a ZIP file or a folder."""
    out: str
    """Run folder."""
    network: NetworkConfig
    """The network to train."""
    preset: str | None = None
    """Name of the preset that the settings come from, for the record."""
    seed: int = 0
    """Fixes initialization, data order and all random numbers of the run."""
    duration: int = 2048 << 20
    """Images to train on."""
    batch_size: int = 2048
    """Images per optimizer step."""
    micro_batch: int | None = None
    """Images per forward pass; gradients of several add up to one step. None: the whole batch."""
    ref_lr: float = 0.01
    """Learning rate between ramp-up and decay (alpha_ref)."""
    ref_batches: float = 70_000
    """Steps after which the learning rate decays (t_ref); 0 for never."""
    rampup_images: int = 10_000_000
    """Images over which the learning rate rises from zero; 0 for none."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of Adam's moments."""
    loss_scale: float = 1.0
    """Factor on the loss before its gradient is taken; Adam undoes it, but for its epsilon and half precision."""
    noise: str = "ln-normal"
    """Distribution of noise levels in training; see `edm2.training.loss.noise`."""
    P_mean: float = -0.4
    """Mean of ln sigma in training, where its distribution is normal."""
    P_std: float = 1.0
    """Standard deviation of ln sigma in training, likewise."""
    weighting: str = "uncertainty"
    """Weighting of the loss across noise levels; see `edm2.training.loss.weighting`."""
    weighting_gamma: float | None = None
    """Parameter gamma of the weighting; None: its default."""
    weighting_k: float | None = None
    """Parameter k of the weighting; None: its default."""
    snr_convention: str = "normalized"
    """What the weighting calls signal-to-noise ratio: (sigma_data / sigma)², or 1 / sigma² in the data's own units."""
    normalize_weighting: bool = True
    """Scale a static weighting to mean 1 on the network's raw output, over the noise levels of training."""
    relative_weighting: bool = False
    """Multiply the static weighting onto the loss after u(sigma) has evened it out, instead of replacing u(sigma)."""
    stratified_sigma: bool = False
    """Draw one ln sigma from each of `batch_size` equally probable strata in every step: small batches then meet
    high and low noise as often as large ones."""
    sigma_rels: tuple[float, ...] = (0.05, 0.10)
    """Relative lengths of the tracked EMA profiles."""
    traditional_ema: int | None = None
    """Half-life in images of an EMA as EDM kept it, stored beside the last snapshots; None for none."""
    label_dropout: float = 0.0
    """Share of images that are trained without their label, for classifier-free guidance."""
    xflip: bool = False
    """Mirror half of the images."""
    standardize: bool = False
    """Shift and scale pixels to mean 0 and standard deviation sigma_data, instead of the range [-1, 1]."""
    holdout: int = 0
    """Images kept from training to measure the loss on."""
    skip_broken: int = 0
    """Without effect: a run stops at a broken file. Kept for one version, so that older config.json files load."""
    init: str | None = None
    """Snapshot to start the weights from; the clock starts at zero."""
    precision: str = "fp32"
    """dtype of the U-Net's activations: fp32, bf16 or fp16. Parameters are float32 always."""
    snapshot_precision: str = "fp32"
    """dtype of stored snapshots: fp32, bf16 or fp16."""
    status_every: int = 128 << 10
    """Images between status lines."""
    snapshot_every: int = 8 << 20
    """Images between EMA snapshots."""
    keep_snapshots: int | None = None
    """Times to keep snapshots of; see `edm2.post_hoc_ema.planning`. None: all."""
    checkpoint_every: int = 128 << 20
    """Images between checkpoints."""
    sample_every: int | None = None
    """Images between sample grids; None for none."""
    holdout_every: int | None = None
    """Images between measurements of the held-out loss; None: with every snapshot."""
    diagnostics_every: int | None = None
    """Images between measurements of activations, weights, updates and gradients; None for none."""
    keep_checkpoints: int = 2
    """Checkpoints to keep; older ones are removed."""
    workers: int = 2
    """Processes that read data; 0 reads in the training process."""
    device: str = "cpu"
    """Device to train on: cpu, cuda or mps."""
    compile: bool = False
    """Compile the network with torch.compile: faster steps after a minute or more of compilation."""
    shard: bool = False
    """With several processes, divide weights, gradients, Adam's moments and averages among them (FSDP2)."""
    recompute: bool = False
    """Compute activations inside of blocks again in the backward pass: less memory, a third more time."""
    patience: float = 1800.0
    """Seconds that a step of several processes waits for one that does not answer, before all of them end."""
    detect_anomaly: bool = False
    """Look for NaN and infinities in every layer, and stop at the first: for a run that has them. Slow."""
    random_block: int = 64
    """Consecutive places whose random numbers are drawn together."""
    max_nonfinite_steps: int = 64
    """Consecutive steps with non-finite gradients after which a run gives up."""

    def __post_init__(self) -> None:
        for field in ("betas", "sigma_rels"):
            object.__setattr__(self, field, tuple(getattr(self, field)))  # JSON has no tuples
        self._check_counts()
        self._check_ranges()
        self.objective()  # refuses what cannot be weighted

    def objective(self) -> DenoisingLoss:
        """What is minimized: noise levels, and how the squared error counts at each."""
        distribution = noise_distribution(self.noise, self.P_mean, self.P_std)
        weighting = make_weighting(
            self.weighting,
            self.weighting_gamma,
            self.weighting_k,
            self.snr_convention,
            self.normalize_weighting,
            self.relative_weighting,
            distribution=distribution,
            sigma_data=self.network.sigma_data,
        )
        return DenoisingLoss(distribution, self.network.sigma_data, weighting)

    def _check_counts(self) -> None:
        for field in (
            "duration", "batch_size", "micro_batch", "status_every", "snapshot_every", "checkpoint_every",
            "sample_every", "holdout_every", "diagnostics_every", "keep_checkpoints", "keep_snapshots",
            "random_block", "max_nonfinite_steps", "traditional_ema",
        ):  # fmt: skip
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}={value} must be at least 1")
        for field in ("seed", "holdout", "skip_broken", "workers", "rampup_images", "ref_batches"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")
        if self.batch_size % self.images_per_forward:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch={self.micro_batch}; "
                f"try micro_batch={math.gcd(self.batch_size, self.images_per_forward)}"
            )
        if self.duration % self.batch_size:
            nearest = max(round(self.duration / self.batch_size), 1) * self.batch_size
            raise ValueError(
                f"duration={self.duration} is not a multiple of batch_size={self.batch_size}; try {nearest}"
            )

    def _check_ranges(self) -> None:
        if not self.ref_lr > 0:
            raise ValueError(f"ref_lr={self.ref_lr} must be positive")
        if not 0 < self.loss_scale < math.inf:
            raise ValueError(f"loss_scale={self.loss_scale} must be positive")
        if not self.P_std > 0:
            raise ValueError(f"P_std={self.P_std} must be positive")
        if self.detect_anomaly and self.compile:
            raise ValueError("anomalies are found in layers, which a compiled network has none of: leave out --compile")
        if not self.patience > 0:
            raise ValueError(f"patience={self.patience} must be positive")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout={self.label_dropout} must lie between 0 and 1")
        if not self.sigma_rels or len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise ValueError(f"sigma_rels={self.sigma_rels} must name at least one EMA length, each once")
        for sigma_rel in self.sigma_rels:
            sigma_rel_to_gamma(sigma_rel)  # refuses lengths that no power function has
        for field in ("precision", "snapshot_precision"):
            if getattr(self, field) not in DTYPES:
                raise ValueError(f"{field}={getattr(self, field)!r} must be fp32, bf16 or fp16")

    @property
    def images_per_forward(self) -> int:
        """Images per forward pass of a process that trains alone; of several, each takes no more than its share."""
        return self.micro_batch or self.batch_size

    def images_per_rank(self, processes: int) -> int:
        """Images that each of several processes sees of a step.

        Raises:
            ValueError: the step, or this share of it, cannot be split evenly.
        """
        share, rest = divmod(self.batch_size, processes)
        if rest or not share:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of the {processes} processes")
        if share % min(self.images_per_forward, share):
            raise ValueError(
                f"{share} images per process and step are not a multiple of micro_batch={self.micro_batch}; "
                f"try micro_batch={math.gcd(share, self.images_per_forward)}"
            )
        if self.shard and processes > 1:
            self._check_shards()
        return share

    def _check_shards(self) -> None:
        """Some instruments need the gradient of whole layers."""
        if self.diagnostics_every is not None:
            raise ValueError("diagnostics need the whole network in one process; leave out --diagnostics or --shard")
        if self.weighting == "pareto":
            raise ValueError("weighting 'pareto' needs the whole network in one process; leave out --shard")

    @property
    def num_averages(self) -> int:
        """Averages of the weights that are kept."""
        return len(self.sigma_rels) + (self.traditional_ema is not None)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build from `to_json`'s dict.

        Raises:
            ValueError: an unknown or missing field, or a value out of range.
        """
        if not isinstance(values.get("network"), dict):
            raise ValueError("training configuration has no network")
        network = NetworkConfig.from_json(values["network"])
        return dataclass_from_json(cls, {**values, "network": network}, "training configuration")

    def differences(self, other: TrainingConfig) -> list[tuple[str, Any, Any]]:
        """(name, ours, theirs) of what may not change within a run, but differs; `network.x` for the network's."""
        mine, theirs = _flat(self.to_json()), _flat(other.to_json())
        changed = [name for name in mine if name not in CHANGEABLE and mine[name] != theirs[name]]
        return [(name, mine[name], theirs[name]) for name in changed]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    network = values.pop("network")
    return {**values, **{f"network.{name}": value for name, value in network.items()}}


def mistyped_fields(record: Any) -> list[str]:
    """Names of the fields of a dataclass object whose values do not fit their annotations.

    Numbers must be finite, and whole ones fit 63 bits; where a float is expected, a whole number is fine.
    """
    hints = get_type_hints(type(record))
    names = [field.name for field in dataclasses.fields(record)]
    return [name for name in names if not _fits(getattr(record, name), hints[name])]


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and _are_items(value, get_args(hint))
    if dataclasses.is_dataclass(hint):
        return isinstance(value, hint) and not mistyped_fields(value)
    if hint is float and type(value) is float:
        return math.isfinite(value)
    if hint in (int, float):
        return type(value) is int and abs(value) < 1 << 63  # bool is an int for isinstance
    return hint is Any or isinstance(value, hint)


def _are_items(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    if len(hints) == 2 and hints[1] is Ellipsis:
        return all(_fits(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(map(_fits, values, hints))
