"""A run in words: what it is, how far it is, how it differs from its preset, and what looks wrong."""

import dataclasses
from collections.abc import Iterable
from statistics import median
from typing import Any

import torch

from edm2.distillation.presets import COMMON, PRESETS as DISTILLATION_PRESETS
from edm2.networks import NetworkConfig
from edm2.planning.presets import PRESETS, Preset
from edm2.report.records import RunRecords
from edm2.sweep.averages import Averages
from edm2.training import TrainingConfig
from edm2.training.loss.by_name import noise_distribution
from edm2.training.run.logging import numbers_of, risen_since
from edm2.training.run.speed import time_text
from edm2.training.settings import DistillationConfig

VISITED = (0.05, 5.0)
"""Noise levels, for data of standard deviation 0.5, between which a sampler decides what is seen."""

RARE = 0.002
"""Probability in training of levels beyond `VISITED` below which they count as rarely visited; 0.005 in the paper."""

UNEVEN = 100.0
"""Ratio of gradient norms of noise levels that counts as uneven; below 20 in runs that learned u(sigma)."""

Rows = list[tuple[str, str]]
"""Names and values."""


def facts(run: RunRecords, averages: Averages | None) -> Rows:
    """Describe a run to a colleague."""
    config, last = run.config, run.stats[-1] if run.stats else {}
    rows = [("Data", _data(run, averages)), ("Network", _network(config, averages))]
    if conditions := ", ".join(f"{c.name} ({c})" for c in getattr(config.network, "conditions", ())):
        rows.append(("Conditions", conditions))
    if config.distillation is not None:
        weight = config.distillation.guidance
        rows.append(("Distilled from", f"{config.teacher}{'' if weight == 1 else f', guidance {weight:g}'}"))
    rows.append(("Progress", _progress(run)))
    if "error" in last:
        text = f"{last['error']:.4f} in training"
        if held_out := numbers_of(run.stats, "holdout_error"):
            text += f", {held_out[-1][1]:.4f} on held-out images"
        rows.append(("Error", f"{text} (1: knows nothing, 0: perfect)"))
    rates = [rate for record in run.stats[-8:] if (rate := record.get("images_per_second"))]
    if rates:
        rate = median(rates)  # reports that waited for a snapshot or a checkpoint are slower
        spent = sum(record.get("seconds", 0) for record in run.stats)
        rows.append(("Speed", f"{rate:,.3g} images/s; {time_text(spent)} so far"))
        if run.images_seen < config.duration:
            rows.append(("Time left", time_text((config.duration - run.images_seen) / rate)))
    if averages is not None:
        times = {snapshot.images_seen for snapshot in averages.snapshots}
        lengths = ", ".join(f"{s:g}" for s in config.sigma_rels)
        rows.append(("Snapshots", f"{len(times)} time{'s' * (len(times) != 1)}, EMA lengths {lengths} tracked"))
    return rows


def _data(run: RunRecords, averages: Averages | None) -> str:
    data = {} if averages is None else averages.metadata.get("data") or {}
    names = data.get("class_names") or []
    shown = ", ".join(map(str, names[:10])) + (", …" if len(names) > 10 else "")
    return "; ".join([
        run.config.data,
        *([f"{data['num_images']:,} images to train on"] if "num_images" in data else []),
        *([f"{len(names)} classes: {shown}"] if names else []),
    ])  # fmt: skip


def _network(config: TrainingConfig, averages: Averages | None) -> str:
    size = "" if averages is None else f", {averages.network_bytes / 4e6:.3g} million parameters"
    net = config.network
    if net is None:
        return f"the user's own{size}"
    height, width = net.size
    return f"config {net.config}, {net.model_channels} channels, draws {net.img_channels}×{height}×{width}{size}"


def _progress(run: RunRecords) -> str:
    seen, duration = run.images_seen, run.config.duration
    return f"{seen:,} of {duration:,} images ({100 * seen / duration:.0f} %)"


# ----------------------------------------------------------------------------------------------------------- settings

NOT_SETTINGS = {
    "data", "out", "preset", "init", "network", "workers", "device", "micro_batch", "sigma_data", "budget",
    "contents", "codec", "warmup_images",
}  # fmt: skip
"""Fields of a configuration that say where and on what a run runs, and those of a distillation that follow from it."""


def preset_of(config: TrainingConfig) -> Preset | None:
    """Preset that a run was configured by; None without one, or if this version does not know it."""
    presets = PRESETS if config.distillation is None else DISTILLATION_PRESETS
    return presets.get(config.preset or "")


def differing_settings(run: RunRecords, images: int | None) -> list[tuple[str, str, str]]:
    """Settings that differ from the preset's, or from the defaults without one, as (name, value here, value there).

    Args:
        run: The run.
        images: Images of its dataset, which some presets go by; None: unknown, so these settings are left out.
    """
    config, preset, distillation = run.config, preset_of(run.config), run.config.distillation
    if distillation is None:
        usual = _defaults(NetworkConfig) | _defaults(TrainingConfig)
    else:  # all others follow from its teacher and its duration
        usual = _defaults(DistillationConfig) | COMMON
    ruled: dict[str, Any] = {}
    if preset is not None:
        usual |= {**preset.network, **preset.training}
        ruled = preset.rules(images or 1, {})
        usual |= ruled if images else {}
    unknown = NOT_SETTINGS if images else NOT_SETTINGS | ruled.keys()
    parts = [vars(part) for part in (config, config.network, distillation) if part is not None]
    here = {name: value for part in parts for name, value in part.items() if name in usual and name not in unknown}
    changed = {name: value for name, value in here.items() if _plain(value) != _plain(usual[name])}
    return [(name, _text(value), _text(usual[name])) for name, value in sorted(changed.items())]


def _defaults(configuration: Any) -> dict[str, Any]:
    fields = dataclasses.fields(configuration)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# ----------------------------------------------------------------------------------------------------------- warnings


def warnings_about(run: RunRecords) -> list[str]:
    """Sentences about what looks wrong in a run."""
    return [*_damage(run), *_rising(run), *_nonfinite(run), *_rarely_visited(run.config), *_uneven(run)]


def _damage(run: RunRecords) -> Iterable[str]:
    if run.damaged:
        yield f"{run.damaged} damaged lines in stats.jsonl or diagnostics.jsonl were passed over."


def _rising(run: RunRecords) -> Iterable[str]:
    held_out = numbers_of(run.stats, "holdout_error") or numbers_of(run.stats, "holdout_loss")
    if (turn := risen_since(held_out)) is not None:
        at, lowest = turn
        yield (
            f"The loss on held-out images has been rising since {at:,} images ({held_out[-1][1] / lowest - 1:.0%} so "
            "far): the network learns its images by heart. Stop there, or train with more dropout or more images."
        )


def _nonfinite(run: RunRecords) -> Iterable[str]:
    steps = sum(record.get("nonfinite_steps", 0) for record in run.stats)
    if steps:
        yield f"{steps:,.0f} steps had gradients that were NaN or infinite; a few are harmless, more mean trouble."


def _rarely_visited(config: TrainingConfig) -> Iterable[str]:
    quantiles = torch.special.ndtri(torch.tensor([RARE, 1 - RARE], dtype=torch.float64))
    distribution = noise_distribution(config.noise, config.P_mean, config.P_std)
    low, high = distribution.sigma(quantiles).tolist()
    if low > VISITED[0]:
        yield f"Noise levels below {low:.3g} are rarely trained on: fine detail may stay rough. Lower --p-mean?"
    if high < VISITED[1]:
        yield f"Noise levels above {high:.3g} are rarely trained on: colours and layout may drift. Raise --p-mean?"


def _uneven(run: RunRecords) -> Iterable[str]:
    levels = run.diagnostics[-1].get("noise_levels", {}) if run.diagnostics else {}
    norms = [norm for norm in levels.get("gradient_norm", {}).values() if norm]
    if norms and max(norms) > UNEVEN * min(norms):
        yield (
            f"Gradients are uneven over noise levels: the strongest is {max(norms) / min(norms):,.0f} times the "
            "weakest, so some levels hardly learn."
        )
