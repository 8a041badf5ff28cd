"""Other ways to name the length of an EMA, and the power-function σ_rel that corresponds, in both directions.

    traditional   θ̂ <- β θ̂ + (1 - β) θ at every step with one β, that is, with a half-life: the profile is exponential
    ramp-up       a half-life that grows with the run, as r · t: such an average *is* a power-function average

Times are in images seen, or all in steps. All values are scalars or arrays.
"""

import numpy as np
from numpy.typing import ArrayLike

from edm2.post_hoc_ema.profile import SIGMA_REL_MAX, FloatArray, gamma_to_sigma_rel, sigma_rel_to_gamma

LN2 = np.log(2)


def beta_to_half_life(beta: ArrayLike, dt: ArrayLike) -> FloatArray:
    """Half-life λ of an average with this β in every step of `dt` images: β = 2^(-dt/λ).

    Raises:
        ValueError: A β is outside (0, 1), or a step is not positive.
    """
    beta, dt = np.asarray(beta, dtype=np.float64), _positive(dt, "dt")
    if not np.all((beta > 0) & (beta < 1)):
        raise ValueError(f"beta={beta} must be between 0 and 1")
    return -dt * LN2 / np.log(beta)


def half_life_to_beta(half_life: ArrayLike, dt: ArrayLike) -> FloatArray:
    """β = 2^(-dt/λ) of an average of half-life λ, in a step of `dt` images.

    Raises:
        ValueError: A half-life or a step is not positive.
    """
    return np.exp2(-_positive(dt, "dt") / _positive(half_life, "half_life"))


def half_life_to_sigma_rel(half_life: ArrayLike, t: ArrayLike) -> FloatArray:
    """Standard deviation, as a fraction of `t`, of the profile that a constant half-life λ has at time `t`.

        σ_rel = sqrt(1 - 2 L e^-L - e^-2L) / L,    L = t ln 2 / λ

    This counts the initial weights, which still have the weight e^-L; if that is negligible, σ_rel = λ / (t ln 2).

    Raises:
        ValueError: A half-life or a time is not positive, or the half-life is so long, at this time, that no
            power function is as wide: a quarter of the run and more.
    """
    L = _positive(t, "t") * LN2 / _positive(half_life, "half_life")
    sigma_rel = _exponential_sigma_rel(L)
    too_long = (L < _L_WIDEST) | (sigma_rel >= SIGMA_REL_MAX)
    if np.any(too_long):
        raise ValueError(
            f"half_life={np.broadcast_to(half_life, np.shape(too_long))[too_long].flat[0]:g} is too long a part of the "
            "run: no power-function profile is as wide"
        )
    return sigma_rel


def sigma_rel_to_half_life(sigma_rel: ArrayLike, t: ArrayLike) -> FloatArray:
    """Half-life λ whose profile, at time `t`, is as wide as that of σ_rel: the inverse of `half_life_to_sigma_rel`.

    Raises:
        ValueError: An EMA length is outside (0, 12^-0.5), or a time is not positive.
    """
    sigma_rel_to_gamma(sigma_rel)  # refuses impossible EMA lengths
    wanted, t = np.asarray(sigma_rel, dtype=np.float64), _positive(t, "t")
    low, high = np.full_like(wanted, _L_WIDEST), 2 / wanted  # σ_rel falls with L there, and is less than 1 / L
    for _ in range(100):  # bisection, until nothing is left of the interval
        middle = (low + high) / 2
        wider = _exponential_sigma_rel(middle) > wanted
        low, high = np.where(wider, middle, low), np.where(wider, high, middle)
    return t * LN2 / ((low + high) / 2)


def rampup_ratio_to_sigma_rel(ratio: ArrayLike) -> FloatArray:
    """EMA length of an average whose half-life is `ratio` times the images seen: γ = ln 2 / ratio - 1.

    Raises:
        ValueError: A ratio is not between 0 and ln 2 = 0.693; from there on the first weights count most.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    if not np.all((ratio > 0) & (ratio < LN2)):
        raise ValueError(f"ratio={ratio} must be between 0 and 0.693")
    return gamma_to_sigma_rel(LN2 / ratio - 1)


def sigma_rel_to_rampup_ratio(sigma_rel: ArrayLike) -> FloatArray:
    """Half-life, as a fraction of the images seen, of the average of EMA length σ_rel: ln 2 / (γ + 1).

    Raises:
        ValueError: An EMA length is outside (0, 12^-0.5).
    """
    return LN2 / (sigma_rel_to_gamma(sigma_rel) + 1)


_L_WIDEST = 1.1
"""Run lengths in units of λ / ln 2: below, the profile becomes narrower again, as it is about the initial weights."""


def _exponential_sigma_rel(L: FloatArray) -> FloatArray:
    """σ_rel of an exponential profile with the rest of its area at time 0."""
    return np.sqrt(1 - 2 * L * np.exp(-L) - np.exp(-2 * L)) / L


def _positive(values: ArrayLike, name: str) -> FloatArray:
    """`values` as float64, all of them above 0."""
    values = np.asarray(values, dtype=np.float64)
    if not np.all(values > 0):
        raise ValueError(f"{name}={values} must be positive")
    return values
