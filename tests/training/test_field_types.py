"""Fields hold what their annotations say, or are named."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from edm2.networks import NetworkConfig
from edm2.training.config import TrainingConfig
from edm2.training.field_types import mistyped_fields


@dataclass(frozen=True)
class Inner:
    side: int = 1


@dataclass(frozen=True)
class Record:
    count: int = 1
    rate: float = 0.5
    flag: bool = True
    name: str | None = None
    size: int | tuple[int, int] = 8
    lengths: tuple[float, ...] = (0.1, 0.2)
    inner: Inner = Inner()
    anything: Any = None


def test_what_fits_is_fine():
    """Every field of a real configuration has an annotation that is understood, after JSON too."""
    config = TrainingConfig(data="digits", out="run", network=NetworkConfig(8, 1, 10))
    other = Record(rate=3, name="x", size=(1, 2), lengths=(), anything=[object()])
    for record in (Record(), other, config, TrainingConfig.from_json(config.to_json())):
        assert mistyped_fields(record) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("count", value) for value in ("1", 1.0, True, None, [1], 1 << 63, -(1 << 63))],
        *[("rate", value) for value in ("1", math.nan, math.inf, True, None, 10**400)],
        *[("flag", value) for value in (1, "true", None)],
        *[("name", value) for value in (3, ["x"])],
        *[("size", value) for value in ((1,), (1, 2, 3), (1.0, 2), [1, 2], "88", None)],
        *[("lengths", value) for value in ((0.1, "x"), [0.1], 0.1, (math.nan,))],
        *[("inner", value) for value in (Inner(side="x"), {}, None)],
    ],
)
def test_what_does_not_fit_is_named(name: str, value: Any):
    assert mistyped_fields(replace(Record(), **{name: value})) == [name]


OLD_FIELDS = {
    "preset": "p", "seed": 3, "duration": 96, "batch_size": 8, "micro_batch": 2, "ref_lr": 0.02, "ref_batches": 5.0,
    "rampup_images": 7, "betas": [0.8, 0.9], "loss_scale": 2.0, "noise": "uniform", "P_mean": -1.0, "P_std": 1.5,
    "weighting": "p2", "weighting_gamma": 2.0, "weighting_k": 0.5, "snr_convention": "data",
    "normalize_weighting": False, "relative_weighting": True, "stratified_sigma": True, "sigma_rels": [0.07],
    "traditional_ema": 9, "label_dropout": 0.1, "xflip": True, "standardize": True, "holdout": 4, "skip_broken": 2,
    "init": "x", "precision": "bf16", "snapshot_precision": "fp16", "status_every": 1, "snapshot_every": 2,
    "keep_snapshots": 3, "checkpoint_every": 4, "sample_every": 5, "holdout_every": 6, "diagnostics_every": 7,
    "keep_checkpoints": 8, "workers": 1, "device": "cuda", "compile": True, "shard": True, "recompute": True,
    "patience": 60.0, "detect_anomaly": False, "random_block": 32, "max_nonfinite_steps": 9,
}  # fmt: skip
"""Every setting of version 0.1 with another value than its default."""


SINCE = {"budget", "checkpoint_seconds", "status_seconds"}
"""Settings that have come since."""


def test_every_setting_of_version_0_1_is_read_and_written_as_it_was():
    """But for `skip_broken`, which means nothing any more. config.json stays flat."""
    stored = {"data": "digits", "out": "run", "network": NetworkConfig(8, 1, 10).to_json(), **OLD_FIELDS}
    config = TrainingConfig.from_json(stored)
    written = json.loads(json.dumps(config.to_json()))
    assert TrainingConfig.from_json(written) == config
    del stored["skip_broken"]
    assert {name: value for name, value in written.items() if name not in SINCE} == json.loads(json.dumps(stored))
    assert set(written) > SINCE
