"""Settings of a run by concern: data, objective, schedule, output, machine.

`TrainingConfig` is all of them together: it inherits the concerns instead of nesting them, so that a setting has one
name everywhere, on the command line, in config.json and in Python (`TrainingConfig(data=..., batch_size=...)`). Each
concern is a frozen dataclass of its own that checks itself: code that needs only the schedule asks for a
`ScheduleConfig`, and is handed the whole. Counts are in images seen. Defaults are those of the paper's ImageNet-512
models (Table 6).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from edm2.post_hoc_ema import sigma_rel_to_gamma
from edm2.training.loss.by_name import make_weighting, noise_distribution
from edm2.training.loss.flow_map import FlowMapLoss
from edm2.training.loss.noise import LnNormal, NoiseDistribution
from edm2.training.loss.objective import DenoisingLoss

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by their names in settings."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images of a run, and what is done to them before the network sees them."""

    data: str
    """Dataset: "digits", a ZIP file or a folder."""
    codec: str | None = None
    """Codec of the user's own, `module:callable`, as `own_codec` makes it; None for one that the data choose."""
    seed: int = 0
    """Fixes initialization, data order and all random numbers of the run."""
    random_block: int = 64
    """Consecutive positions whose random numbers are drawn together."""
    label_dropout: float = 0.0
    """Fraction of images that are trained without their label, for classifier-free guidance."""
    xflip: bool = False
    """Mirror half of the images."""
    standardize: bool = False
    """Shift and scale pixels to mean 0 and standard deviation sigma_data, instead of the range [-1, 1]."""
    holdout: int = 0
    """Images kept from training to measure the loss on."""
    make_conditions: tuple[str, ...] = ()
    """Conditions made of the images: NAME=downsample:FACTOR."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "make_conditions", tuple(self.make_conditions))  # JSON has no tuples
        _check_at_least(1, self, "random_block")
        _check_at_least(0, self, "seed", "holdout")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout={self.label_dropout} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Loss that is minimized: noise levels, and how the squared error counts at each."""

    sigma_data: float = 0.5
    """Standard deviation of the data as the network sees it; where `network` is given, that of the network."""
    noise: str = "ln-normal"
    """Distribution of noise levels in training; see `edm2.training.loss.noise`."""
    P_mean: float = -0.4
    """Mean of ln sigma in training, where its distribution is normal."""
    P_std: float = 1.0
    """Standard deviation of ln sigma in training, likewise."""
    stratified_sigma: bool = False
    """Draw one ln sigma from each of `batch_size` equally probable strata in every step: small batches then meet
    high and low noise as often as large ones."""
    weighting: str = "uncertainty"
    """Weighting of the loss across noise levels; see `edm2.training.loss.weighting`."""
    weighting_gamma: float | None = None
    """Parameter gamma of the weighting; None: its default."""
    weighting_k: float | None = None
    """Parameter k of the weighting; None: its default."""
    snr_convention: str = "normalized"
    """Signal-to-noise ratio of the weighting: (sigma_data / sigma)², or 1 / sigma² in the data's own units."""
    normalize_weighting: bool = True
    """Scale a static weighting to mean 1 on the network's raw output, over the noise levels of training."""
    relative_weighting: bool = False
    """Multiply the static weighting onto the loss after u(sigma) has evened it out, instead of replacing u(sigma)."""
    loss_scale: float = 1.0
    """Factor on the loss before its gradient is taken; Adam undoes it, but for its epsilon and half precision."""

    def __post_init__(self) -> None:
        _check_positive(self, "P_std", "sigma_data")
        if not 0 < self.loss_scale < math.inf:
            raise ValueError(f"loss_scale={self.loss_scale} must be positive")
        self.objective()  # refuses what cannot be weighted

    def objective(self) -> DenoisingLoss:
        distribution = noise_distribution(self.noise, self.P_mean, self.P_std)
        weighting = make_weighting(
            self.weighting,
            self.weighting_gamma,
            self.weighting_k,
            self.snr_convention,
            self.normalize_weighting,
            self.relative_weighting,
            distribution=distribution,
            sigma_data=self.sigma_data,
        )
        return DenoisingLoss(distribution, self.sigma_data, weighting)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Distillation of a flow map: its teacher, known by contents, and the arguments of `FlowMapLoss`."""

    contents: str
    """Digest of the teacher's files, and of its guide's."""
    codec: dict | None = None
    """The teacher's codec, which the student keeps; None if its file names none."""
    guidance: float = 1.0
    """Guidance weight of the teacher; 1 is none."""
    interval: tuple[float, float] | None = None
    """Noise levels (low, high] with guidance; None: all."""
    anchor: float = 0.33
    """Fraction of the images with s = t, which keep the map a denoiser."""
    to_zero: float = 0.4
    """Fraction of the others with s = 0."""
    tangent_norm: float | None = 0.2
    """c in the normalized error Δ / (rms Δ + c); None: it is not normalized."""
    warmup_images: int = 0
    """Images over which the derivative's part of the target grows from 0 to 1."""
    derivative: str = "difference"
    """One of `edm2.training.loss.flow_map.DERIVATIVES`."""

    def __post_init__(self) -> None:
        if self.interval is not None:
            object.__setattr__(self, "interval", tuple(self.interval))  # JSON has no tuples
        _check_at_least(0, self, "warmup_images")
        self.loss(LnNormal(), 0.5, None)  # refuses what makes no loss

    def loss(
        self, distribution: NoiseDistribution, sigma_data: float, teacher: Callable[..., Tensor] | None
    ) -> FlowMapLoss:
        """Build the loss."""
        return FlowMapLoss(
            distribution,
            sigma_data,
            teacher,
            anchor=self.anchor,
            to_zero=self.to_zero,
            tangent_norm=self.tangent_norm,
            warmup_images=self.warmup_images,
            derivative=self.derivative,
        )

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        return asdict(self)

    @property
    def abilities(self) -> tuple[str, ...]:
        """Ways in which the student can be sampled, of `edm2.networks.ABILITIES`."""
        denoises = ("denoise",) if self.anchor > 0 else ()
        return (*denoises, *(("consistency",) if self.to_zero == 1 else ("map",) if self.anchor < 1 else ()))


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Steps of the optimizer."""

    duration: int = 2048 << 20
    """Images to train on."""
    batch_size: int = 2048
    """Images per optimizer step."""
    ref_lr: float = 0.01
    """Learning rate between ramp-up and decay (alpha_ref)."""
    ref_batches: float = 70_000
    """Steps after which the learning rate decays (t_ref); 0 for never."""
    rampup_images: int = 10_000_000
    """Images over which the learning rate rises from zero; 0 for none."""
    cooldown_images: int = 0
    """Images at the end over which the learning rate falls to zero; 0 for none, as in the paper."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of Adam's moments."""
    budget: float | None = None
    """Seconds that the duration was made for, on the machine where the run began; None: it was chosen."""
    max_nonfinite_steps: int = 64
    """Consecutive steps with non-finite gradients after which a run gives up."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON has no tuples
        _check_at_least(1, self, "duration", "batch_size", "max_nonfinite_steps")
        _check_at_least(0, self, "rampup_images", "ref_batches", "cooldown_images")
        _check_positive(self, "ref_lr")
        if self.duration % self.batch_size:
            nearest = max(round(self.duration / self.batch_size), 1) * self.batch_size
            raise ValueError(
                f"duration={self.duration} is not a multiple of batch_size={self.batch_size}; try {nearest}"
            )


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Files that a run writes, and when."""

    out: str
    """Run folder."""
    sigma_rels: tuple[float, ...] = (0.05, 0.10)
    """EMA lengths of the tracked profiles."""
    traditional_ema: int | None = None
    """Half-life in images of an EMA as EDM kept it, stored beside the last snapshots; None for none."""
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
    checkpoint_seconds: float = 600.0
    """Time after which there is a checkpoint all the same: that much is lost at most when a run is killed."""
    status_seconds: float = 30.0
    """Time after which a status line is printed all the same; only those at intervals of images are stored."""
    keep_checkpoints: int = 2
    """Checkpoints to keep; older ones are removed."""
    sample_every: int | None = None
    """Images between sample grids; None for none."""
    holdout_every: int | None = None
    """Images between measurements of the held-out loss; None: with every snapshot."""
    diagnostics_every: int | None = None
    """Images between measurements of activations, weights, updates and gradients; None for none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma_rels", tuple(self.sigma_rels))  # JSON has no tuples
        _check_at_least(1, self, "status_every", "snapshot_every", "checkpoint_every", "sample_every", "holdout_every")
        _check_positive(self, "checkpoint_seconds", "status_seconds")
        _check_at_least(1, self, "diagnostics_every", "keep_checkpoints", "keep_snapshots", "traditional_ema")
        _check_precision(self, "snapshot_precision")
        if not self.sigma_rels or len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise ValueError(f"sigma_rels={self.sigma_rels} must name at least one EMA length, each once")
        for sigma_rel in self.sigma_rels:
            sigma_rel_to_gamma(sigma_rel)  # refuses lengths that no power function has

    @property
    def num_averages(self) -> int:
        """Averages of the weights that are kept."""
        return len(self.sigma_rels) + (self.traditional_ema is not None)


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Execution: what changes how fast a run is and how much memory it takes, and nothing else but rounding."""

    device: str = "cpu"
    """Device to train on: cpu, cuda or mps."""
    precision: str = "fp32"
    """dtype of the U-Net's activations: fp32, bf16 or fp16. Parameters are float32 always."""
    micro_batch: int | None = None
    """Images per forward pass; gradients of several add up to one step. None: the whole batch."""
    workers: int = 2
    """Processes that read data; 0 reads in the training process."""
    compile: bool = False
    """Compile the network with torch.compile: faster steps after a minute or more of compilation."""
    shard: bool = False
    """With several processes, shard weights, gradients, Adam's moments and averages among them (FSDP2)."""
    recompute: bool = False
    """Compute activations inside of blocks again in the backward pass: less memory, a third more time."""
    patience: float = 1800.0
    """Seconds that a step of several processes waits for one that does not answer, before all of them end."""
    detect_anomaly: bool = False
    """Look for NaN and infinities in every layer, and stop at the first: for a run that has them. Slow."""

    def __post_init__(self) -> None:
        _check_at_least(1, self, "micro_batch")
        _check_at_least(0, self, "workers")
        _check_positive(self, "patience")
        _check_precision(self, "precision")
        if self.detect_anomaly and self.compile:
            raise ValueError("anomalies are found in layers, which a compiled network has none of: leave out --compile")


def _check_at_least(least: int, config: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if value is not None and value < least:
            raise ValueError(f"{field}={value} must {'not be negative' if least == 0 else f'be at least {least}'}")


def _check_positive(config: Any, *fields: str) -> None:
    for field in fields:
        if not getattr(config, field) > 0:
            raise ValueError(f"{field}={getattr(config, field)} must be positive")


def _check_precision(config: Any, field: str) -> None:
    if getattr(config, field) not in DTYPES:
        raise ValueError(f"{field}={getattr(config, field)!r} must be fp32, bf16 or fp16")
