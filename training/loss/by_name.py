"""The weighting that a run asks for by name, with everything that cannot work refused in one line."""

from dataclasses import fields

import torch

from edm2.training.loss.noise import NoiseDistribution
from edm2.training.loss.pareto import Pareto
from edm2.training.loss.snr import (
    P2,
    Constant,
    Eps,
    InDataUnits,
    MaxSNR,
    MinSNR,
    SNRWeighting,
    SoftMinSNR,
    V,
)
from edm2.training.loss.weighting import EDM, Relative, StaticWeighting, Uncertainty, Weighting, normalized

STATIC: dict[str, type[SNRWeighting]] = {
    "eps": Eps,
    "constant": Constant,
    "max-snr": MaxSNR,
    "min-snr": MinSNR,
    "soft-min-snr": SoftMinSNR,
    "p2": P2,
    "v": V,
}
"""Functions of the signal-to-noise ratio by name."""

WEIGHTINGS = ("uncertainty", "edm", *STATIC, "pareto")
"""Names that `make_weighting` knows."""

SNR_CONVENTIONS = ("normalized", "data")
"""SNR = sigma_data² / sigma², or 1 / sigma²."""

FARTHEST = 6.0
"""Standard normal numbers drawn in training lie within this of zero, but for one in a billion."""


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
    """The weighting of that name.

    Args:
        name: One of `WEIGHTINGS`.
        gamma: Parameter of "max-snr", "min-snr", "soft-min-snr" and "p2"; None: its default.
        k: Parameter of "p2"; None: its default.
        snr_convention: One of `SNR_CONVENTIONS`, for functions of the signal-to-noise ratio.
        normalize: Scale it so that its mean weight on the raw output F is 1.
        relative: Multiply a function of the signal-to-noise ratio onto the loss that learned uncertainty has evened
            out, instead of replacing it: see `Relative`.
        distribution: Noise levels in training.
        sigma_data: Standard deviation of the data.

    Raises:
        ValueError: an unknown name or convention, a parameter that the weighting does not take or cannot have, a
            combination that means nothing, or a weighting that is zero or not finite on these noise levels.
    """
    _check_names(name, snr_convention)
    parameters = {key: value for key, value in (("gamma", gamma), ("k", k)) if value is not None}
    _check_parameters(name, parameters)
    if name not in STATIC:
        _check_plain(name, snr_convention, relative)
        if name == "pareto":
            return Pareto(distribution, sigma_data, normalize=normalize)
        return EDM() if name == "edm" else Uncertainty()
    weighting: StaticWeighting = STATIC[name](**parameters)
    if snr_convention == "data":
        weighting = InDataUnits(weighting)
    _check_range(weighting, distribution, sigma_data)
    if normalize:
        weighting = normalized(weighting, distribution, sigma_data)
        _check_range(weighting, distribution, sigma_data)
    return Relative(weighting) if relative else weighting


def _check_names(name: str, snr_convention: str) -> None:
    if name not in WEIGHTINGS:
        raise ValueError(f"weighting={name!r} is unknown; there are {', '.join(WEIGHTINGS)}")
    if snr_convention not in SNR_CONVENTIONS:
        raise ValueError(f"snr_convention={snr_convention!r} is unknown; there are {', '.join(SNR_CONVENTIONS)}")


def _check_parameters(name: str, given: dict[str, float]) -> None:
    takes = [field.name for field in fields(STATIC[name])] if name in STATIC else []
    if strange := [parameter for parameter in given if parameter not in takes]:
        its = " and ".join(takes) if takes else "no parameters"
        raise ValueError(f"weighting {name!r} does not take {' and '.join(strange)}: it takes {its}")


def _check_plain(name: str, snr_convention: str, relative: bool) -> None:
    """Of what is not a function of the signal-to-noise ratio."""
    if snr_convention != "normalized":
        raise ValueError(f"snr_convention={snr_convention!r} means nothing for weighting {name!r}: it uses no SNR")
    if relative and name == "pareto":
        raise ValueError("weighting 'pareto' cannot be relative: its weights are optimal for the plain squared error")
    if relative:
        raise ValueError(
            f"relative weighting means nothing for weighting {name!r}: on top of learned uncertainty it would be "
            f"'uncertainty' itself; leave it out, or choose one of {', '.join(STATIC)}"
        )


def _check_range(weighting: StaticWeighting, distribution: NoiseDistribution, sigma_data: float) -> None:
    """In float32, at all noise levels of training."""
    sigma = distribution.sigma(torch.linspace(-FARTHEST, FARTHEST, 1001))
    weight = weighting.weight(sigma, sigma_data)
    finite = weight.isfinite()
    if not finite.all():
        raise ValueError(f"weighting {weighting} is not finite at noise level {sigma[~finite][0]:.3g}")
    if not weight.any():
        raise ValueError(f"weighting {weighting} is zero at every noise level")
