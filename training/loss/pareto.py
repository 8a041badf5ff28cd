"""Weights that let all noise levels improve at once: the Pareto-optimal weighting of Min-SNR (arXiv 2303.09556).

Noise levels are tasks that share one network: bins t, with losses L_t. The weights w >= 0 of sum 1 that minimize

    || sum_t w_t grad L_t ||² + lambda sum_t w_t²

let a step along -sum_t w_t grad L_t improve all tasks alike, if lambda is small; the second term keeps weights
together. Min-SNR finds them by *unconstrained gradient descent* (UGD) over b, with w_t = e^b_t / sum_s e^b_s.
Only the Gram matrix of the gradients matters, G_ts = grad L_t . grad L_s, and in w the problem is convex: here the
minimum that UGD descends to is computed exactly.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from edm2.training.loss.bins import NoiseBins, equal_bins
from edm2.training.loss.noise import NoiseDistribution, levels
from edm2.training.loss.weighting import LEVELS, edm_weight


def pareto_weights(gram: Tensor, strength: float) -> Tensor:
    """Find the only w >= 0 of sum 1 that minimizes || sum_t w_t grad L_t ||² + lambda sum_t w_t².

    With H = G + lambda I, the x >= 0 that minimizes x H x / 2 - sum x satisfies the same conditions of optimality up to
    its scale, so w = x / sum x. With H = R^T R it is a non-negative least-squares problem: R x ~ R^-T 1.

    Args:
        gram: Positive semidefinite and not zero, float64 [bins, bins].
        strength: lambda in units of the mean of |grad L_t|², positive.

    Returns:
        float64 [bins].
    """
    from scipy.optimize import nnls  # takes a while to import

    scaled = gram / gram.diagonal().mean()
    R = torch.linalg.cholesky(scaled + strength * torch.eye(len(gram), dtype=gram.dtype), upper=True)
    ones = torch.ones(len(gram), 1, dtype=gram.dtype)
    target = torch.linalg.solve_triangular(R.mT, ones, upper=False).flatten()
    x, _ = nnls(R.numpy(), target.numpy(), maxiter=100 * len(gram))
    return torch.from_numpy(x / np.sum(x))


class Pareto:
    """Pareto-optimal weights per bin of noise levels, updated every 100 steps; constant on x0 until the first time.

    A `Weighting` without learned uncertainty. L_t is the mean of ||D - y||² in bin t, and there lambda(sigma) is
    bins w_t / sd², so that equal weights are the constant weighting of x0.

    Args:
        distribution: Noise levels in training, which the bins divide into equally probable parts.
        sigma_data: Standard deviation of the data.
        bins: Number of bins.
        every: Steps between two updates.
        strength: lambda of the objective, in units of the mean of |grad L_t|². The smaller, the more of the weight
            goes to the bins whose gradients are small: those of low noise.
        decay: Factor on the moving average of the Gram matrix at an update. Gradients of a few images per bin are
            noisy, and so would be the weights.
        floor: Part of the weight that is spread evenly over all bins. The optimum often gives bins of high noise none
            at all, since what the others learn helps them too; but sampling starts there.
        normalize: Scale the weighting to mean 1 on the raw output F, as `normalized` does static ones.

    Attributes:
        bins: `NoiseBins`.
    """

    uses_uncertainty: ClassVar[bool] = False

    def __init__(
        self,
        distribution: NoiseDistribution,
        sigma_data: float,
        *,
        bins: int = 16,
        every: int = 100,
        strength: float = 1.0,
        decay: float = 0.9,
        floor: float = 0.01,
        normalize: bool = True,
    ) -> None:
        self.bins = equal_bins(distribution, bins)
        self.every = every
        self.strength = strength
        self.decay = decay
        self.floor = floor
        self.normalize = normalize
        self._c_out2 = c_out2_by_bin(self.bins, distribution, sigma_data)
        self._gram = torch.zeros(bins, bins, dtype=torch.float64)  # moving average of Gram matrices, starting at zero
        self._seen = torch.zeros(bins, dtype=torch.float64)  # moving average of 1 for bins with images, 0 for others
        self._weights = torch.full((bins,), 1 / bins, dtype=torch.float64)

    def __call__(self, squared_error: Tensor, sigma: Tensor, u: Tensor | None, sigma_data: float) -> Tensor:
        """lambda (D - y)²."""
        return self.weight(sigma, sigma_data) * squared_error

    def weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """lambda(sigma), shape and dtype of `sigma`."""
        weight = len(self.bins) * self.weights / sigma_data**2
        if self.normalize:
            weight = weight / (weight * self._c_out2).sum()
        return weight.to(sigma)[self.bins.index(sigma)]

    @property
    def weights(self) -> Tensor:
        """w of each bin, positive and of sum 1: float64 [bins]."""
        return (1 - self.floor) * self._weights + self.floor / len(self.bins)

    @property
    def gram(self) -> Tensor:
        """Average Gram matrix, float64 [bins, bins]; NaN for bins without images so far.

        Positive semidefinite even if bins were without images at times: it is divided from both sides.
        """
        scale = self._seen.sqrt()
        return self._gram / torch.outer(scale, scale)

    def is_due(self, steps: int) -> bool:
        """True if gradients are to be measured in the step that follows `steps` others."""
        return steps > 0 and steps % self.every == 0

    def update(self, gradients: Tensor, images: Tensor) -> None:
        """Move the average towards new gradients; once every bin had an image, find the optimal weights.

        Gradients that are not finite, as they occur in half precision, are ignored.

        Args:
            gradients: Sums over the images of each bin, as `x0_gradients` returns them, [bins, P]; those of several
                micro-batches or processes added up.
            images: Images in each bin, int64 [bins].
        """
        gradients, images = gradients.cpu().double(), images.cpu()  # in this order: MPS has no float64
        mean = gradients / images.clamp(min=1)[:, None]
        gram = mean @ mean.T
        if not gram.isfinite().all():
            return
        self._gram.lerp_(gram, 1 - self.decay)
        self._seen.lerp_((images > 0).double(), 1 - self.decay)
        if self._seen.all() and self._gram.any():  # no gradient passes an output gain that is still zero
            self._weights.copy_(pareto_weights(self.gram, self.strength))

    def state_dict(self) -> dict[str, Tensor]:
        """State for a checkpoint: the tensors themselves, to be stored or filled in place."""
        return {"gram": self._gram, "seen": self._seen, "weights": self._weights}


def c_out2_by_bin(bins: NoiseBins, distribution: NoiseDistribution, sigma_data: float) -> Tensor:
    """Contribution of each bin to the mean of c_out² = 1 / lambda_EDM, float64 [bins]."""
    sigma = levels(distribution, LEVELS)
    c_out2 = 1 / edm_weight(sigma, sigma_data)
    return torch.zeros(len(bins), dtype=torch.float64).index_add(0, bins.index(sigma), c_out2 / LEVELS)
