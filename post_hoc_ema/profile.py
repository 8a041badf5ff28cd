"""Power-function profiles (Karras et al. 2024, arXiv 2312.02696v2, Section 3 and Appendix C), in float64.

    θ̂_γ(t) = ∫ p_γ(τ; t) θ(τ) dτ,    p_γ(τ; t) = (γ + 1) τ^γ / t^(γ + 1)   for 0 <= τ <= t

A profile is named by its EMA length σ_rel: the standard deviation of p_γ, as a fraction of t. EMA lengths lie between
0 (only the newest weights) and 12^-0.5 = 0.2887 (a plain mean, γ = 0), both excluded. Times are in images seen; any
unit will do if it is the same for all. Scalars and arrays are accepted and broadcast as in numpy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

SIGMA_REL_MAX = 12**-0.5
"""EMA length of the plain mean (γ = 0), which no profile reaches."""


def sigma_rel_to_gamma(sigma_rel: ArrayLike) -> FloatArray:
    """Exponent γ > 0 of the profile with EMA length `sigma_rel` (Eq. 126, Algorithm 2).

    γ is the largest root of γ³ + 7γ² + (16 - σ_rel⁻²) γ + (12 - σ_rel⁻²).

    Raises:
        ValueError: An EMA length is outside (0, 12^-0.5).
    """
    r = _valid_sigma_rel(sigma_rel) ** -2.0
    # With γ = y - 7/3 the polynomial is y³ + py + q, whose three real roots Viète gives in closed form.
    p, q = -(r + 1 / 3), (36 * r + 2) / 27
    y = 2 * np.sqrt(-p / 3) * np.cos(np.arccos(1.5 * q / p * np.sqrt(-3 / p)) / 3)
    gamma = y - 7 / 3
    # Taking 7/3 from y costs digits where γ is small; one step of Newton's method restores them.
    value = ((gamma + 7) * gamma + (16 - r)) * gamma + (12 - r)
    slope = (3 * gamma + 14) * gamma + (16 - r)
    return gamma - value / slope


def gamma_to_sigma_rel(gamma: ArrayLike) -> FloatArray:
    """EMA length of the profile with exponent `gamma` (Eq. 123).

        σ_rel = sqrt((γ + 1) / ((γ + 2)² (γ + 3)))

    Raises:
        ValueError: An exponent is not above -1, where the profile has no finite area.
    """
    gamma = np.asarray(gamma, dtype=np.float64)
    _refuse(~(gamma > -1), gamma, "gamma={} must be greater than -1")
    return np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def power_function_beta(sigma_rel: ArrayLike, t: ArrayLike, dt: ArrayLike) -> FloatArray:
    """Weight of the old average in an update, β = (1 - dt/t)^(γ + 1) (Eq. 127).

    Args:
        sigma_rel: EMA length.
        t: Images seen after the step.
        dt: Images seen since the last update, whatever number of steps that was; `dt = t` gives β = 0.

    Raises:
        ValueError: Not 0 < dt <= t, or an EMA length is outside (0, 12^-0.5).
    """
    return np.exp(log_beta(sigma_rel_to_gamma(sigma_rel), t, dt))


def power_function_step(sigma_rel: ArrayLike, t: ArrayLike, dt: ArrayLike) -> FloatArray:
    """Weight of the new parameters in an update, 1 - β; arguments as in `power_function_beta`.

    Late in training β is so close to 1 that subtracting it from 1 would lose most digits of the difference.
    """
    return -np.expm1(log_beta(sigma_rel_to_gamma(sigma_rel), t, dt))


def log_beta(gamma: ArrayLike, t: ArrayLike, dt: ArrayLike) -> FloatArray:
    """ln β = (γ + 1) ln(1 - dt/t) for the exponent γ; other arguments and errors as of `power_function_beta`."""
    t, dt = np.asarray(t, dtype=np.float64), np.asarray(dt, dtype=np.float64)
    _refuse(~((dt > 0) & (dt <= t)), dt, "dt={} must be positive and at most t, the images seen after the step")
    with np.errstate(divide="ignore"):  # dt = t: ln 0 = -inf is meant
        return (np.asarray(gamma) + 1) * np.log1p(-dt / t)


def power_function_profile(tau: ArrayLike, t: ArrayLike, sigma_rel: ArrayLike) -> FloatArray:
    """Density p_γ(τ; t) = (γ + 1) τ^γ / t^(γ + 1) for 0 <= τ <= t, else 0; its integral is 1 (Eq. 121)."""
    tau, t = np.asarray(tau, dtype=np.float64), _valid_time(t)
    gamma = sigma_rel_to_gamma(sigma_rel)
    inside = (tau >= 0) & (tau <= t)
    return np.where(inside, (gamma + 1) / t * np.where(inside, tau / t, 0) ** gamma, 0)[()]


def power_function_response(t: ArrayLike, sigma_rel: ArrayLike, length: int) -> FloatArray:
    """Weights of the moments 0, 1, ..., length - 1 in the average at time `t`: the profile there, with sum 1.

    Returns:
        [length, ...], followed by the broadcast shape of `t` and `sigma_rel` (Eqs. 108, 121).
    """
    t, sigma_rel = np.broadcast_arrays(_valid_time(t), sigma_rel)
    moments = np.arange(length).reshape(length, *[1] * t.ndim)
    curve = power_function_profile(moments, t, sigma_rel)
    return curve / curve.sum(axis=0)


def profile_inner_product(t_a: ArrayLike, sigma_rel_a: ArrayLike, t_b: ArrayLike, sigma_rel_b: ArrayLike) -> FloatArray:
    """∫ p_a(τ; t_a) p_b(τ; t_b) dτ of two profiles (Eq. 151); here for t_a <= t_b, else with the roles exchanged.

        (γ_a + 1)(γ_b + 1) / ((γ_a + γ_b + 1) t_b) · (t_a / t_b)^γ_b

    Raises:
        ValueError: A time is not positive, or an EMA length is outside (0, 12^-0.5).
    """
    t_a, t_b = _valid_time(t_a), _valid_time(t_b)
    gamma_a, gamma_b = sigma_rel_to_gamma(sigma_rel_a), sigma_rel_to_gamma(sigma_rel_b)
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_last = np.where(t_a <= t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * last) * (first / last) ** gamma_last


def solve_coefficients(
    in_t: ArrayLike, in_sigma_rel: ArrayLike, out_t: ArrayLike, out_sigma_rel: ArrayLike
) -> FloatArray:
    """Coefficients x that combine tracked averages into wanted ones, θ̂ = Σ_i x_i θ̂_i (Algorithm 3).

    Solves A x = b with A_ij = <p_i, p_j> and b_i = <p_i, p_wanted>: the combination nearest to the wanted profile in
    the L2 sense. Beyond the paper's algorithm, x is divided by its sum, as the weights of an average add up to 1.

    Args:
        in_t: [inputs] images seen of the tracked averages.
        in_sigma_rel: [inputs] their EMA lengths.
        out_t: Images seen of the wanted averages, one for all or [outputs].
        out_sigma_rel: Their EMA lengths, one or [outputs].

    Returns:
        [inputs, outputs], each column with sum 1. Float64, as A is ill-conditioned: 1e6 for 64 times of 2 EMA lengths.

    Raises:
        ValueError: Two inputs have the same time and EMA length, a time is not positive, or an EMA length is outside
            (0, 12^-0.5).
    """
    return _solve_normalized(*_normal_equations(in_t, in_sigma_rel, out_t, out_sigma_rel))


@dataclass(frozen=True)
class ReconstructionError:
    """Forecast for reconstructed averages, before any of them is computed; each field is [outputs]."""

    profile_error: FloatArray
    """Distance of the profile obtained from the wanted one, relative: of densities here, ||Σ x_i p_i - p|| / ||p||
    (L2), where values below 1e-7 · `noise_bound` are rounding, since squares are subtracted; of tails in
    `tails.tail_forecast`."""

    noise_gain: FloatArray
    """sqrt(Σ x_i²): growth of independent errors of the inputs, as storage in float16 makes them, root mean square."""

    noise_bound: FloatArray
    """Σ |x_i| >= 1: by how much errors of the inputs grow at worst."""


def reconstruction_error(
    in_t: ArrayLike, in_sigma_rel: ArrayLike, out_t: ArrayLike, out_sigma_rel: ArrayLike
) -> ReconstructionError:
    """Forecast the quality of the averages that `solve_coefficients` combines; same arguments, same errors raised."""
    A, b = _normal_equations(in_t, in_sigma_rel, out_t, out_sigma_rel)
    x = _solve_normalized(A, b)
    c = profile_inner_product(out_t, out_sigma_rel, out_t, out_sigma_rel)
    squared = (x * (A @ x - 2 * b)).sum(axis=0) + c
    return ReconstructionError(
        profile_error=np.sqrt(np.maximum(squared, 0) / c),
        noise_gain=np.sqrt((x**2).sum(axis=0)),
        noise_bound=np.abs(x).sum(axis=0),
    )


def _normal_equations(
    in_t: ArrayLike, in_sigma_rel: ArrayLike, out_t: ArrayLike, out_sigma_rel: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Inner products A [inputs, inputs] of the inputs with each other, and b [inputs, outputs] with the outputs."""
    in_t, in_sigma_rel = np.broadcast_arrays(np.atleast_1d(in_t), np.atleast_1d(in_sigma_rel))
    out_t, out_sigma_rel = np.atleast_1d(out_t), np.atleast_1d(out_sigma_rel)
    _refuse_duplicates(in_t, in_sigma_rel)
    A = profile_inner_product(in_t[:, None], in_sigma_rel[:, None], in_t, in_sigma_rel)
    b = profile_inner_product(in_t[:, None], in_sigma_rel[:, None], out_t, out_sigma_rel)
    return A, b


def _solve_normalized(A: FloatArray, b: FloatArray) -> FloatArray:
    """x / Σ x_i with A x = b, column by column."""
    x = np.linalg.solve(A, b)
    return x / x.sum(axis=0)


def _refuse_duplicates(t: FloatArray, sigma_rel: FloatArray) -> None:
    """Raise ValueError if two inputs are equal: A x = b then has no single solution."""
    pairs, counts = np.unique(np.stack([t, sigma_rel], axis=1), axis=0, return_counts=True)
    if (counts > 1).any():
        t, sigma_rel = pairs[counts > 1][0]
        raise ValueError(f"two averages of {t:.0f} images at sigma_rel={sigma_rel:g}; keep only one of them")


def _valid_sigma_rel(sigma_rel: ArrayLike) -> FloatArray:
    """`sigma_rel` as float64, all of it strictly between 0 and 12^-0.5."""
    sigma_rel = np.asarray(sigma_rel, dtype=np.float64)
    outside = ~((sigma_rel > 0) & (sigma_rel < SIGMA_REL_MAX))
    _refuse(outside, sigma_rel, "sigma_rel={} must be greater than 0 and less than 0.2887 (12**-0.5)")
    return sigma_rel


def _valid_time(t: ArrayLike) -> FloatArray:
    """`t` as float64, all of it positive."""
    t = np.asarray(t, dtype=np.float64)
    _refuse(~(t > 0), t, "time {} must be positive (images seen)")
    return t


def _refuse(wrong: NDArray[np.bool_], values: FloatArray, message: str) -> None:
    """Raise ValueError with the first value that is wrong; conditions are phrased so that NaN is wrong."""
    if np.any(wrong):
        raise ValueError(message.format(np.broadcast_to(values, np.shape(wrong))[wrong].flat[0]))
