"""How far a Frechet distance would move if other images had been drawn: half-samples, a bootstrap without repeats.

The spread of a mean over random halves of N values is the standard error of the mean of all N. So it is for whatever
depends on the images smoothly. The usual bootstrap draws with repeats; how many there are varies, and with it the rank
of a covariance of fewer images than features: it would overstate the spread threefold.
"""

import numpy as np
import numpy.typing as npt
import scipy.linalg

from edm2.metrics import FeatureStatistics

RESAMPLES = 40
"""A standard deviation of so many is known to 11 per cent."""

MAX_WORK = 3e9
"""Multiplications per resample that count as cheap, about a tenth of a second."""

Array = npt.NDArray[np.float64]


def frechet_deviation(features: npt.ArrayLike, reference: FeatureStatistics) -> float | None:
    """Standard deviation of the Frechet distance to `reference`, from random halves of the features.

    Args:
        features: [N, D].
        reference: What the distance is to; taken as exact.

    Returns:
        None for fewer than four images, and where it would not be cheap: for tens of thousands of images with thousands
        of features.
    """
    features = np.asarray(features, dtype=np.float64)
    count, size = features.shape
    if count < 4 or count * size * min(count, size) > MAX_WORK:
        return None
    deviations = features - reference.mu
    seen = deviations @ _square_root(reference.sigma)
    random = np.random.Generator(np.random.PCG64(0))  # fixed: the same features always have the same deviation
    halves = [random.permutation(count)[: count // 2] for _ in range(RESAMPLES)]
    return float(np.std([_variable_part(deviations[half], seen[half]) for half in halves], ddof=1))


def _variable_part(deviations: Array, seen: Array) -> float:
    """What depends on the samples in |mu - mu_r|² + tr(S + S_r - 2 (S_r^½ S S_r^½)^½).

    `deviations` [N, D] are from mu_r and `seen` the same times S_r^½. The trace of the root is the sum of singular
    values of `seen` about its mean, found from the smaller of its two Gram matrices.
    """
    mean = deviations.mean(axis=0)
    scale = len(deviations) - 1
    centered = seen - seen.mean(axis=0)
    gram = centered.T @ centered if len(centered) > centered.shape[1] else centered @ centered.T
    cross = np.sqrt(np.clip(scipy.linalg.eigvalsh(gram), 0, None) / scale).sum()
    return float(mean @ mean + np.square(deviations - mean).sum() / scale - 2 * cross)


def _square_root(matrix: Array) -> Array:
    """Symmetric square root of a positive semidefinite matrix."""
    values, vectors = scipy.linalg.eigh(np.atleast_2d(matrix))
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
