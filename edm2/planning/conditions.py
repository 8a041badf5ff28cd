"""Conditions of a run: what the network must know of those that a user asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edm2.networks import Condition, ImageCondition
from edm2.networks.conditions import noise_level
from edm2.post_hoc_ema import SafetensorsSnapshot
from edm2.training import Dataset
from edm2.training.data.conditions import Conditioned, describe_condition, parse_maker


def plan_conditions(
    dataset: Dataset,
    asked: Sequence[str],
    makers: Sequence[str],
    dropouts: Mapping[str, float],
    noises: Mapping[str, float],
) -> tuple[Condition, ...]:
    """Describe the conditions of a run.

    Args:
        asked: Texts NAME or NAME=KIND of conditions that the dataset has.
        makers: Texts NAME=downsample:FACTOR of those that are made of the images.
        dropouts: Fractions of images trained without one, by name.
        noises: Largest noise on image conditions, by name.
    """
    kinds: dict[str, str | None] = {name: kind or None for name, _, kind in (text.partition("=") for text in asked)}
    kinds |= {name: None for name, _ in map(parse_maker, makers)}
    conditioned = Conditioned(dataset, list(kinds), makers)
    found = {name: describe_condition(conditioned, name, kind) for name, kind in kinds.items()}
    for option, values in (("--condition-dropout", dropouts), ("--condition-noise", noises)):
        if unknown := [name for name in values if name not in found]:
            raise ValueError(f"{option} {unknown[0]}: is no condition of this run; add --condition {unknown[0]}")
    found |= {name: replace(found[name], dropout=dropout) for name, dropout in dropouts.items()}
    levels: list[Condition] = []
    for name, noise in noises.items():
        image = found[name]
        if not isinstance(image, ImageCondition) or noise <= 0:
            raise ValueError(
                f"--condition-noise {name}={noise:g}: needs a condition that is an image, and a number > 0"
            )
        found[name] = replace(image, noise=noise)
        levels.append(noise_level(replace(image, noise=noise)))
    return (*found.values(), *levels)


def label_is_source(init: str | None) -> bool:
    """True if a network with classes and further conditions sums up the class like these, in an n-ary MP-sum.

    One that starts from a network with classes keeps that one's form, which is the published sum of two for published
    networks and all whose only condition is the class.
    """
    described = None if init is None else SafetensorsSnapshot(init).metadata.get("network")
    if not isinstance(described, dict) or not described.get("label_dim"):
        return True
    return bool(described.get("label_source"))
