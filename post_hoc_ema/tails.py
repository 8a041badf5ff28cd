"""Averages of any kind combined into others: profiles as objects, and one least-squares problem in their tails.

A stored average is θ̂ = ∫ p(u) θ(u) du over the weights θ(u) of training. Its tail P(u) is the mass of p after u:

    P(u) = 1 for u < s,    1 - f(u) for s <= u < t,    0 from t on

where the average was stored at t, began at s, and has the share f(u) of its mass on the weights up to u. Weights that
move like a random walk, with variance D per image and per weight, are combined with coefficients c of sum 1 at an error

    E |Σ_i c_i θ̂_i - θ̂*|² = D ∫ (Σ_i c_i P_i - P*)² du + Σ_i c_i² v_i,    v_i: variance of the rounding of file i

`tail_coefficients` makes that smallest. The densities of Algorithm 3 (`profile.solve_coefficients`) are close to it
where all averages are power functions of one clock; tails exist for plain checkpoints too, whose density is a delta
function.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edm2.post_hoc_ema.profile import FloatArray, ReconstructionError, gamma_to_sigma_rel, sigma_rel_to_gamma

NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(12)
"""Gauss-Legendre nodes in each interval between two times where tails have a kink."""

GRADES = 24
"""An interval that begins with u^a, a < 1 perhaps, is divided at so many powers of 1/4."""

SMOOTH = 8.0
"""Widths of a profile that one interval may span."""


class Profile(ABC):
    """Weights over time of a stored average; times in images seen (or steps), as everywhere.

    Attributes:
        t: When the average was stored.
        start: When it began, with a copy of the weights: mass from before start stays on these.
    """

    t: float
    start: float

    @abstractmethod
    def mass_until(self, u: FloatArray) -> FloatArray:
        """Share f(u) of the mass on weights up to u, for start <= u < t."""

    @property
    @abstractmethod
    def width(self) -> float:
        """Time in which f falls by a factor e, counted back from t."""

    @property
    def sigma_rel(self) -> float | None:
        """EMA length, if this is a power function whose clock began at 0; 0 for plain weights."""
        return None

    def tail(self, u: FloatArray) -> FloatArray:
        """P(u), the mass on weights after u."""
        inside = (u >= self.start) & (u < self.t)
        return np.where(inside, 1 - self.mass_until(np.where(inside, u, self.start)), u < self.start)

    def to_json(self) -> dict[str, Any]:
        """Entries for the metadata of a file, from which `profile_from_json` makes it again."""
        return {"kind": type(self).__name__, **vars(self)}


@dataclass(frozen=True)
class PowerProfile(Profile):
    """Power function of a clock, f(u) = ((u - clock) / (full - clock))^exponent (Eq. 121: exponent γ + 1).

    Raises:
        ValueError: Times are not clock <= start < t <= full, or the exponent is not positive.
    """

    t: float
    exponent: float
    clock: float = 0.0
    """When the tracker's clock was at 0: that of the run, or where fine-tuning began."""
    start: float = np.nan
    """When the tracker began with a copy of the weights; by default at the clock's beginning."""
    full: float = np.nan
    """When f reaches 1; by default at t. Later where the last update stands for a longer interval than it ended."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", self.clock if np.isnan(self.start) else self.start)
        object.__setattr__(self, "full", self.t if np.isnan(self.full) else self.full)
        if not (self.clock <= self.start < self.t <= self.full and 0 < self.exponent < np.inf):
            raise ValueError(f"{vars(self)} must have clock <= start < t <= full, and exponent > 0")

    def mass_until(self, u: FloatArray) -> FloatArray:
        """Share of the mass on weights up to u."""
        return ((u - self.clock) / (self.full - self.clock)) ** self.exponent

    @property
    def width(self) -> float:
        """Time in which f falls by a factor e, near the end."""
        return (self.full - self.clock) / self.exponent

    @property
    def sigma_rel(self) -> float | None:
        """EMA length of a power function from time 0 on; None for another clock or beginning."""
        plain = self.clock == 0 == self.start and self.full == self.t
        return float(gamma_to_sigma_rel(self.exponent - 1)) if plain else None

    def __str__(self) -> str:
        since = f" since {self.clock:g}" if self.clock else ""
        begun = f", begun at {self.start:g}" if self.start > self.clock else ""
        if self.exponent == 1 and self.full == self.t:
            return f"mean of {self.start:g} to {self.t:g}"
        length = f", length {self.sigma_rel:.4g}" if self.sigma_rel is not None else ""
        return f"power function of exponent {self.exponent:.4g}{length}{since}{begun} at {self.t:g}"


@dataclass(frozen=True)
class RawProfile(Profile):
    """Plain weights: a checkpoint."""

    t: float

    @property
    def start(self) -> float:  # type: ignore[override]  # all its mass is at t
        """The same as t."""
        return self.t

    def mass_until(self, u: FloatArray) -> FloatArray:
        """Nothing is on weights before t."""
        return np.zeros_like(u)

    @property
    def width(self) -> float:
        """Without end, since f is constant."""
        return np.inf

    @property
    def sigma_rel(self) -> float | None:
        """EMA length."""
        return 0.0

    def __str__(self) -> str:
        return f"plain weights at {self.t:g}"


@dataclass(frozen=True)
class ExponentialProfile(Profile):
    """Average of a constant decay, f(u) = e^(-rate (t - u)).

    `rate` is -ln β / interval for an update of weight 1 - β at each interval, or ln 2 / half-life. Mass e^(-rate (t -
    start)) stays on the weights at `start`.

    Raises:
        ValueError: Not 0 <= start < t, or the rate is not positive.
    """

    t: float
    rate: float
    start: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.start < self.t and 0 < self.rate < np.inf):
            raise ValueError(f"{vars(self)} must have 0 <= start < t, and rate > 0")

    def mass_until(self, u: FloatArray) -> FloatArray:
        """Share of the mass on weights up to u."""
        return np.exp(-self.rate * (self.t - u))

    @property
    def width(self) -> float:
        """Time in which f falls by a factor e."""
        return 1 / self.rate

    def __str__(self) -> str:
        begun = f", begun at {self.start:g}" if self.start else ""
        return f"constant decay of half-life {np.log(2) / self.rate:.4g}{begun} at {self.t:g}"


def power_profile(t: float, sigma_rel: float, clock: float = 0.0) -> PowerProfile:
    """Return the profile of an EMA length, at a time t and with a clock that began at `clock`."""
    exponent = float(sigma_rel_to_gamma(sigma_rel)) + 1
    if not t > clock:
        raise ValueError(f"time {t} must be positive (images seen)" if not clock else f"time {t} is not after {clock}")
    return PowerProfile(t, exponent, clock)


def box_profile(start: float, t: float) -> PowerProfile:
    """Return the profile of a plain mean over the weights from `start` to `t`."""
    return PowerProfile(t, 1.0, clock=start)


KINDS: dict[str, type[Profile]] = {kind.__name__: kind for kind in (PowerProfile, RawProfile, ExponentialProfile)}


def profile_from_json(entries: Any) -> Profile:
    """Return the profile that `Profile.to_json` described, in untrusted metadata."""
    if not isinstance(entries, dict) or entries.get("kind") not in KINDS:
        raise ValueError(f"its profile is none of {', '.join(KINDS)}")
    numbers = {name: value for name, value in entries.items() if name != "kind"}
    if not all(type(value) in (int, float) and np.isfinite(value) for value in numbers.values()):
        raise ValueError("its profile holds something else than numbers")
    try:
        return KINDS[entries["kind"]](**numbers)
    except TypeError:
        raise ValueError(f"its profile has other entries than a {entries['kind']}") from None


def tail_coefficients(inputs: Sequence[Profile], targets: Sequence[Profile], noise: ArrayLike = 0.0) -> FloatArray:
    """Return coefficients c [inputs, targets] that combine stored averages into wanted ones, Σ_i c_i θ̂_i.

    They make ∫ (Σ_i c_i P_i - P*)² du + Σ_i noise_i c_i² smallest among those of sum 1; in float64, by QR on quadrature
    nodes, whose condition is the square root of that of the normal equations. A target that is stored is a unit vector.

    Args:
        inputs: Profiles of the stored averages, all different.
        targets: Profiles of the wanted ones.
        noise: [inputs] v_i / D, the variance of rounding over that of a step of one image; or one number.
    """
    if not inputs or len({*inputs}) < len(inputs):
        raise ValueError("profiles to combine must be all different, one or more")
    last = max(range(len(inputs)), key=lambda i: inputs[i].t)
    others = [i for i in range(len(inputs)) if i != last]
    u, w = _quadrature([*inputs, *targets])
    P, P_wanted = (_tails(profiles, u) for profiles in (inputs, targets))
    root = np.sqrt(w)[:, None]
    B, y = root * (P[:, others] - P[:, [last]]), root * (P_wanted - P[:, [last]])  # sum 1: c_last = 1 - Σ c_others
    rho = np.sqrt(np.broadcast_to(np.asarray(noise, dtype=np.float64), len(inputs)))
    if rho.any():
        ridge = np.vstack([np.diag(rho[others]), np.full(len(others), -rho[last])])
        B = np.vstack([B, ridge])
        y = np.vstack([y, np.zeros((len(others), len(targets))), np.full((1, len(targets)), -rho[last])])
    c = np.empty((len(inputs), len(targets)))
    Q, R = np.linalg.qr(B)
    c[others] = np.linalg.solve(R, Q.T @ y) if others else 0
    c[last] = 1 - c[others].sum(axis=0)
    for j, target in enumerate(targets):
        if target in inputs:  # rounding would spread it over its neighbours
            c[:, j] = np.eye(len(inputs))[inputs.index(target)]
    return c


def tail_error(inputs: Sequence[Profile], targets: Sequence[Profile], coefficients: FloatArray) -> FloatArray:
    """Return sqrt ∫ (Σ_i c_i P_i - P*)² du [targets]: the error of averages over a walk of unit variance per image."""
    u, w = _quadrature([*inputs, *targets])
    difference = _tails(inputs, u) @ coefficients - _tails(targets, u)
    return np.sqrt(w @ difference**2)


def tail_forecast(
    inputs: Sequence[Profile], targets: Sequence[Profile], coefficients: FloatArray
) -> ReconstructionError:
    """Forecast the quality of the averages that coefficients [inputs, targets] combine.

    `profile_error` is the distance to the wanted average of a random walk, as a share of how far the last weights are
    from it: 1 for a user who averages nothing.
    """
    error = tail_error(inputs, targets, coefficients)
    unaveraged = np.array([tail_distance(RawProfile(target.t), target) for target in targets])
    return ReconstructionError(
        profile_error=np.divide(error, unaveraged, out=np.zeros_like(error), where=unaveraged > 0),
        noise_gain=np.sqrt((coefficients**2).sum(axis=0)),
        noise_bound=np.abs(coefficients).sum(axis=0),
    )


def tail_distance(a: Profile, b: Profile) -> float:
    """Return sqrt ∫ (P_a - P_b)² du: how far two averages of a walk of unit variance per image are from each other."""
    return tail_error([a], [b], np.ones((1, 1))).item()


def _tails(profiles: Sequence[Profile], u: FloatArray) -> FloatArray:
    """Tails at some times, [times, profiles]."""
    return np.stack([profile.tail(u) for profile in profiles], axis=1)


def _quadrature(profiles: Sequence[Profile]) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights [n] that integrate products of two tails over all times."""
    kinks = {0.0} | {float(x) for p in profiles for x in (p.t, p.start)}
    clocks = {float(p.clock) for p in profiles if isinstance(p, PowerProfile)}
    kinks |= {clock for clock in clocks if clock >= 0}
    edges = np.array(sorted(kinks))
    added: list[float] = []
    for clock in clocks:  # (u - clock)^a is not smooth there
        after = edges[edges > max(clock, 0)][0]
        added += [clock + (after - clock) * 4.0**-i for i in range(1, GRADES + 1)]
    for end, width in {(float(p.t), p.width) for p in profiles}:  # sharp profiles between times far apart
        before = edges[max(0, np.searchsorted(edges, end) - 1)]
        step = SMOOTH * width
        while end - step > before:
            added.append(end - step)
            step *= 4
    edges = np.unique([*edges, *(edge for edge in added if edge > 0)])
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (NODES + 1)).ravel(), (half * NODE_WEIGHTS).ravel()
