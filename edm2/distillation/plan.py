"""Configuration of a distillation, from its teacher, a preset and the user's choices."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edm2.distillation.presets import COMMON, PRESETS
from edm2.distillation.teacher import Teacher, check_data
from edm2.io.model import is_external
from edm2.networks import NetworkConfig
from edm2.planning.plan import check_holdout
from edm2.planning.presets import Settings, learning_rate
from edm2.planning.relative import measured_every
from edm2.training import Dataset, TrainingConfig, codec_from_json
from edm2.training.data.batches import seen_shape
from edm2.training.settings import DistillationConfig

INHERITED = ("seed", "xflip", "standardize", "holdout", "make_conditions", "batch_size", "micro_batch", "workers",
             "snapshot_precision", "random_block", "P_mean")  # fmt: skip
"""Settings of the teacher's run that its distillation keeps."""


def default_preset(metadata: Mapping[str, Any]) -> str:
    """Preset for a teacher, by the preset that it was trained with."""
    name = str(metadata.get("preset"))
    return "digits" if name == "digits8" else "img512" if name.startswith("edm2-img512") else "small"


def plan_distillation(
    teacher: Teacher,
    dataset: Dataset,
    data: str,
    out: str,
    preset: str | None = None,
    choices: Mapping[str, Any] | None = None,
) -> TrainingConfig:
    """Configure a run that distils `teacher` on `dataset`.

    Args:
        teacher: The teacher.
        dataset: Opened data.
        data: The dataset's name or path, as the run's configuration records it.
        out: Run folder.
        preset: Key of `PRESETS`; None: `default_preset`.
        choices: Fields of `TrainingConfig` and `DistillationConfig`, and `target_level`, that override the preset.

    Raises:
        OSError, ValueError: a file is missing, the teacher is of other images or no network of config G, or choices
            that do not fit together.
    """
    metadata = teacher.metadata
    if is_external(metadata) or not isinstance(metadata.get("network"), dict):
        raise ValueError(f"{teacher.name}: is a network of your own; a flow map begins as a network of edm2")
    before = NetworkConfig.from_json(metadata["network"])
    given, preset = dict(choices or {}), preset or default_preset(metadata)
    trained: Mapping[str, Any] = metadata.get("training") or {}
    settings: Settings = {name: trained[name] for name in INHERITED if name in trained}
    settings |= {"ref_lr": (trained.get("ref_lr") or learning_rate(before.model_channels)) / 2}
    settings |= PRESETS[preset].training | COMMON | given
    network = _student(before, teacher.name, settings.pop("target_level", "mean"))
    codec = metadata.get("codec")
    check_data(teacher, seen_shape(dataset, codec_from_json(codec or {"kind": "pixels"})), dataset.class_names, data)
    if "holdout" not in given:
        settings["holdout"] = min(settings.get("holdout", 0), len(dataset) // 10)
    settings |= _intervals(settings)
    names = {f.name for f in dataclasses.fields(DistillationConfig)}
    settings.setdefault("init", str(teacher.snapshot()))
    distillation = DistillationConfig(
        contents=teacher.contents(),
        codec=codec,
        guidance=teacher.guidance,
        interval=teacher.interval,
        **{name: settings.pop(name) for name in list(settings) if name in names},
    )
    config = TrainingConfig(
        data=data,
        out=out,
        network=network,
        preset=preset,
        teacher=teacher.name,
        guide=teacher.guide,
        distillation=distillation,
        **settings,
    )
    check_holdout(config, len(dataset))
    return config


def kept_intervals(begun: TrainingConfig | None) -> Settings:
    """Intervals of a distillation that has begun, which another duration does not change."""
    if begun is None or begun.distillation is None:
        return {}
    settings = vars(begun.distillation) | vars(begun)
    return {name: settings[name] for name in _intervals({"duration": begun.duration, "holdout": begun.holdout})}


def _intervals(settings: Settings) -> Settings:
    """Intervals that follow from the duration, where neither preset nor user says them."""
    duration = settings["duration"]
    follow = {
        "rampup_images": duration // 40,
        "warmup_images": duration // 10,
        "cooldown_images": duration // 2,
        "snapshot_every": duration // 32,
        "checkpoint_every": duration // 4,
        "sample_every": duration // 4,
        "holdout_every": measured_every(duration, settings["holdout"]),
    }
    return {name: max(value, 1) for name, value in follow.items() if name not in settings}


def _student(before: NetworkConfig, name: str, target_level: str) -> NetworkConfig:
    """The teacher's network that is told a second noise level, without dropout."""
    try:
        return dataclasses.replace(before, target_level=target_level, dropout=0.0)
    except ValueError as error:
        raise ValueError(f"{name}: cannot become a flow map: {error}") from None
