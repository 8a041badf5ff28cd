"""Weightings and noise distributions by name, for configuration, command line and studies.

A new one takes its own file and a line in a table here. Its class is imported when it is asked for: `--help` needs the
names alone, and torch takes a second to import.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from edm2.training.loss.noise import NoiseDistribution
    from edm2.training.loss.weighting import Weighting


class Registered(NamedTuple):
    """A class that has a name on the command line."""

    home: str
    """Module and class; a module that begins with a dot lies in this folder."""
    summary: str
    """One line for `--help`."""


WEIGHTINGS = {
    "uncertainty": Registered(".weighting:Uncertainty", "learned u(sigma), which evens out all noise levels (EDM2)"),
    "edm": Registered(".weighting:EDM", "1 on the network's output F (EDM)"),
    "eps": Registered(".snr:Eps", "SNR: 1 on the noise (DDPM)"),
    "constant": Registered(".snr:Constant", "1 on the image"),
    "v": Registered(".snr:V", "SNR + 1: 1 on the velocity"),
    "max-snr": Registered(".snr:MaxSNR", "max(SNR, gamma), gamma 1: truncated SNR"),
    "min-snr": Registered(".snr:MinSNR", "min(SNR, gamma), gamma 5 (Min-SNR)"),
    "soft-min-snr": Registered(".snr:SoftMinSNR", "SNR gamma / (SNR + gamma), gamma 5 (HDiT)"),
    "p2": Registered(".snr:P2", "SNR / (k + SNR)^gamma, k 1, gamma 1 (P2)"),
    "pareto": Registered(
        ".pareto:Pareto", "learned per bin of noise levels: all bins improve alike (Min-SNR's optimum)"
    ),
}
"""Weightings by name: any `Weighting`, with the parameters `gamma` and `k` if its class is a dataclass with them."""

NOISE_DISTRIBUTIONS = {
    "ln-normal": Registered(".noise:LnNormal", "ln sigma normal (EDM2)"),
    "ddpm": Registered(".noise:DDPMLinear", "steps of DDPM's linear schedule"),
    "ddpm-cosine": Registered(".noise:DDPMCosine", "steps of the cosine schedule"),
    "uniform": Registered(".noise:LnUniform", "ln sigma uniform"),
}
"""Distributions of noise levels by name: any `NoiseDistribution`, with `P_mean` and `P_std` if it has these fields."""

SNR_CONVENTIONS = ("normalized", "data")
"""SNR = sigma_data² / sigma², or 1 / sigma²."""


def make_weighting(
    name: str,
    gamma: float | None = None,
    k: float | None = None,
    snr_convention: str = "normalized",
    normalize: bool = True,
    relative: bool = False,
    *,
    distribution: NoiseDistribution,
    sigma_data: float,
) -> Weighting:
    """Make the weighting of that name.

    Args:
        name: One of `WEIGHTINGS`.
        gamma: Parameter of "max-snr", "min-snr", "soft-min-snr" and "p2"; None: its default.
        k: Parameter of "p2"; None: its default.
        snr_convention: One of `SNR_CONVENTIONS`, for functions of the signal-to-noise ratio.
        normalize: Scale a static weighting so that its mean weight on the raw output F is 1.
        relative: Multiply a static weighting onto the loss that learned uncertainty has evened out, instead of
            replacing it: see `Relative`.
        distribution: Noise levels in training.
        sigma_data: Standard deviation of the data.

    Raises:
        ValueError: an unknown name or convention, a parameter that the weighting does not take or cannot have, a
            combination that means nothing, or a weighting that is zero or not finite on these noise levels.
    """
    from edm2.training.loss.pareto import Pareto
    from edm2.training.loss.snr import InDataUnits
    from edm2.training.loss.weighting import Relative, StaticWeighting, check_range, normalized

    kind = _load("weighting", WEIGHTINGS, name)
    parameters = _parameters(name, kind, {"gamma": gamma, "k": k})
    _check_combination(name, kind, snr_convention, relative)
    if kind is Pareto:
        return Pareto(distribution, sigma_data, normalize=normalize)
    weighting: Any = kind(**parameters)
    if not isinstance(weighting, StaticWeighting):
        return weighting
    if snr_convention == "data":
        weighting = InDataUnits(kind(**parameters))
    check_range(weighting, distribution, sigma_data)
    if normalize:
        weighting = normalized(weighting, distribution, sigma_data)
        check_range(weighting, distribution, sigma_data)
    return Relative(weighting) if relative else weighting


def noise_distribution(name: str, P_mean: float = -0.4, P_std: float = 1.0) -> NoiseDistribution:
    """Make the distribution of that name.

    Args:
        name: One of `NOISE_DISTRIBUTIONS`.
        P_mean: Mean of ln sigma, for "ln-normal" only.
        P_std: Standard deviation of ln sigma, for "ln-normal" only.

    Raises:
        ValueError: an unknown name.
    """
    kind = _load("noise", NOISE_DISTRIBUTIONS, name)
    return kind(**{key: value for key, value in (("P_mean", P_mean), ("P_std", P_std)) if key in _fields(kind)})


def _load(what: str, table: Mapping[str, Registered], name: str) -> type:
    """The class of that name."""
    if name not in table:
        raise ValueError(f"{what}={name!r} is unknown; there are {', '.join(table)}")
    module, _, class_name = table[name].home.partition(":")
    return getattr(importlib.import_module(module, "edm2.training.loss"), class_name)


def _fields(kind: type) -> list[str]:
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def _parameters(name: str, kind: type, values: Mapping[str, float | None]) -> dict[str, float]:
    """Parameters that were given, if the weighting takes them."""
    given = {key: value for key, value in values.items() if value is not None}
    takes = _fields(kind)
    if strange := [key for key in given if key not in takes]:
        its = " and ".join(takes) or "no parameters"
        raise ValueError(f"weighting {name!r} does not take {' and '.join(strange)}: it takes {its}")
    return given


def _check_combination(name: str, kind: type, snr_convention: str, relative: bool) -> None:
    from edm2.training.loss.snr import SNRWeighting
    from edm2.training.loss.weighting import EDM, StaticWeighting

    if snr_convention not in SNR_CONVENTIONS:
        raise ValueError(f"snr_convention={snr_convention!r} is unknown; there are {', '.join(SNR_CONVENTIONS)}")
    if snr_convention == "data" and not issubclass(kind, SNRWeighting):
        raise ValueError(f"snr_convention={snr_convention!r} means nothing for weighting {name!r}: it uses no SNR")
    if relative and (kind is EDM or not issubclass(kind, StaticWeighting)):
        raise ValueError(
            f"relative weighting means nothing for weighting {name!r}: leave it out, or choose a static weighting "
            "that is not constant on F, such as min-snr or p2"
        )
