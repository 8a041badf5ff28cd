"""The description of a run, complete enough to repeat it; stored as config.json in the run's folder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from edm2.networks import NetworkConfig
from edm2.networks.config import dataclass_from_json
from edm2.training.settings import (
    DTYPES,
    DataConfig,
    DistillationConfig,
    MachineConfig,
    ObjectiveConfig,
    OutputConfig,
    ScheduleConfig,
)

__all__ = ["CHANGEABLE", "CONCERNS", "DTYPES", "TrainingConfig"]

CONCERNS = (DataConfig, ObjectiveConfig, ScheduleConfig, OutputConfig, MachineConfig)
"""Settings that a run consists of, besides its network."""

LATER = ("codec", "make_conditions", "cooldown_images", "teacher", "guide", "distillation")
"""Settings that JSON leaves out where they have their default: runs without them are known by what they always were."""

CHANGEABLE = frozenset(
    {
        "budget",
        "checkpoint_every",
        "checkpoint_seconds",
        "compile",
        "data",
        "detect_anomaly",
        "device",
        "diagnostics_every",
        "duration",
        "guide",
        "holdout_every",
        "init",
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
        "status_seconds",
        "teacher",
        "workers",
    }
)
"""Fields that may differ when a run is resumed: they do not change what is computed, or only how long.

Data, first network and teacher are known by their contents, not by these paths (`edm2.training.run.inputs`)."""

REMOVED = frozenset({"skip_broken"})
"""Fields of earlier versions that mean nothing any more."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(DataConfig, ObjectiveConfig, ScheduleConfig, OutputConfig, MachineConfig):
    """One run: the settings of all concerns side by side, as in config.json, and its network."""

    network: NetworkConfig | None
    """The network to train; None for one that is handed to the trainer."""
    preset: str | None = None
    """Name of the preset that the settings come from, for the record."""
    init: str | None = None
    """Snapshot to start the weights from; the clock starts at zero."""
    distillation: DistillationConfig | None = None
    """Distillation of a flow map from a teacher; None for training from data."""
    teacher: str | None = None
    """Network that the run distils, for the record."""
    guide: str | None = None
    """Network that guides the teacher, for the record; None: none, or the teacher itself without labels."""

    def __post_init__(self) -> None:
        if self.network is not None:
            object.__setattr__(self, "sigma_data", self.network.sigma_data)
        if isinstance(self.distillation, dict):
            distilled = dataclass_from_json(DistillationConfig, self.distillation, "distillation")
            object.__setattr__(self, "distillation", distilled)
        if self.distillation is not None:
            self._check_derivative(self.distillation.derivative)
        for concern in CONCERNS:
            concern.__post_init__(self)
        if self.batch_size % self.images_per_forward:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch={self.micro_batch}; "
                f"try micro_batch={math.gcd(self.batch_size, self.images_per_forward)}"
            )

    def _check_derivative(self, derivative: str) -> None:
        """Refuse exact derivatives where forward mode has no rules, and differences of rounded numbers."""
        reason = "compile" if self.compile else "shard" if self.shard else None
        if derivative == "jvp" and reason is not None:
            raise ValueError(f"derivative='jvp' does not work with {reason}: choose derivative='difference'")
        if derivative == "difference" and self.precision != "fp32":  # whose rounding errors are ten times the slope
            raise ValueError(f"precision={self.precision} rounds differences away: choose fp32, or derivative='jvp'")

    @property
    def images_per_forward(self) -> int:
        """Images per forward pass of a single process; of several, none takes more than `images_per_rank`."""
        return self.micro_batch or self.batch_size

    def images_per_rank(self, processes: int) -> int:
        """Images of a step that each of several processes sees.

        Raises:
            ValueError: the step, or the images of one process, cannot be split evenly.
        """
        images, rest = divmod(self.batch_size, processes)
        if rest or not images:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of the {processes} processes")
        if images % min(self.images_per_forward, images):
            raise ValueError(
                f"{images} images per process and step are not a multiple of micro_batch={self.micro_batch}; "
                f"try micro_batch={math.gcd(images, self.images_per_forward)}"
            )
        if self.shard and processes > 1:
            self._check_shards()
        return images

    def _check_shards(self) -> None:
        """Raise ValueError if an instrument needs the gradient of whole layers."""
        if self.diagnostics_every is not None:
            raise ValueError("diagnostics need the whole network in one process; leave out --diagnostics or --shard")
        if self.weighting == "pareto":
            raise ValueError("weighting 'pareto' needs the whole network in one process; leave out --shard")

    @property
    def own_network(self) -> NetworkConfig:
        """Description of a network of ours. Raises ValueError where the trainer is handed one."""
        if self.network is None:
            raise ValueError(f"{self.out}: the run's network is external, so it has no description here")
        return self.network

    def to_json(self) -> dict[str, Any]:
        """A flat dict of plain values, with the network as a dict inside; `from_json` is its inverse."""
        values = dataclasses.asdict(self)
        if self.network is not None:
            values["network"] = self.network.to_json()
            del values["sigma_data"]  # the network's
        return {name: value for name, value in values.items() if value or name not in LATER}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build from `to_json`'s dict, also one of an earlier version.

        Raises:
            ValueError: an unknown or missing field, or a value out of range.
        """
        network = values.get("network", False)
        if network is not None and not isinstance(network, dict):
            raise ValueError("training configuration has no network")
        network = None if network is None else NetworkConfig.from_json(network)
        known = {name: value for name, value in values.items() if name not in REMOVED}
        return dataclass_from_json(cls, {**known, "network": network}, "training configuration")

    def differences(self, other: TrainingConfig) -> list[tuple[str, Any, Any]]:
        """(name, ours, theirs) of what may not change within a run, but differs; `network.x` for the network's."""
        mine, theirs = _flat(self.to_json()), _flat(other.to_json())
        names = [name for name in {**mine, **theirs} if name not in CHANGEABLE]
        return [(name, mine.get(name), theirs.get(name)) for name in names if mine.get(name) != theirs.get(name)]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    nested = {name: values.pop(name, None) for name in ("network", "distillation")}
    flat = {f"{prefix}.{name}": value for prefix, inner in nested.items() for name, value in (inner or {}).items()}
    return {**values, **flat, **({"network": "external"} if nested["network"] is None else {})}
