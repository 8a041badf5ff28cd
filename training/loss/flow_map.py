"""Flow maps: one loss for diffusion, consistency, mean flow and their distillation from any denoiser.

A flow map jumps along the probability-flow ODE from noise level t to any lower one s, in one evaluation of D(x; t, s):

    X(x; t, s) = q x + (1 - q) D(x; t, s),    q = s / t

With τ = ln t and velocity v = dx/dτ = x - x*, x* the teacher's denoised image (or the data y where there is no
teacher), the map is exact if dX/dτ = 0 along v. That is a regression of D onto

    q x* + (1 - q) (D⁻ - dD⁻/dτ)

where ⁻ stops the gradient. At s = t it is the loss of a denoiser (EDM, arXiv 2206.00364), at s = 0 that of consistency
models (sCM, arXiv 2410.11081); in between it is mean flow (arXiv 2505.13447), and with a teacher AYF (arXiv
2506.14603).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edm2.networks.attention import higher_derivatives
from edm2.training.loss.noise import NoiseDistribution
from edm2.training.loss.objective import errors
from edm2.training.loss.weighting import edm_weight

LEVELS = (0.002, 80.0)
"""Noise levels between which maps are learned."""

DERIVATIVES = ("jvp", "difference")
"""Ways to differentiate along the trajectory: exactly, in forward mode; or by a backward difference."""

STEP = 0.003
"""Step of the difference in ln t, which errs by half a percent of the gradient."""


class FlowMapLoss:
    """Regression of a flow map; a loss like any other of `Trainer`, for networks with a `target_level`.

    Part of the images are an anchor, s = t, which keeps the map a denoiser; the others arrive at a second level, or at
    0. The error on the network's output F is divided by its root mean square, so that no trajectory dominates, and so
    that the anchors hold: their error is the smaller one, and the map would pull the denoiser away. Without a teacher,
    the error of the anchors remains as it is.

    `anchor=0, to_zero=1` trains a consistency model; without a teacher it is mean flow.

    Args:
        distribution: Distribution of both noise levels; the higher one is t.
        sigma_data: Standard deviation of the data y.
        teacher: Denoiser called as teacher(x, sigma, labels) with sigma [N, 1, 1, 1] (and conditions=... if there are
            any), guided or not, without gradients; None for the data.
        anchor: Fraction of the images with s = t.
        to_zero: Fraction of the others with s = 0.
        tangent_norm: c in Δ / (rms Δ + c); None leaves Δ as it is.
        warmup_images: Images over which the derivative's part grows from 0 to 1.
        derivative: One of `DERIVATIVES`.

    Raises:
        ValueError: a fraction outside [0, 1], another number that is not positive, or an unknown derivative.
    """

    reports = ("map_error",)

    def __init__(
        self,
        distribution: NoiseDistribution,
        sigma_data: float,
        teacher: Callable[..., Tensor] | None = None,
        *,
        anchor: float = 0.5,
        to_zero: float = 0.3,
        tangent_norm: float | None = 0.2,
        warmup_images: int = 0,
        derivative: str = "jvp",
    ) -> None:
        for name, value in (("anchor", anchor), ("to_zero", to_zero)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie between 0 and 1")
        if tangent_norm is not None and not tangent_norm > 0:  # an anchor of the teacher itself errs by 0: 0 / 0
            raise ValueError(f"tangent_norm={tangent_norm} must be positive")
        if derivative not in DERIVATIVES:
            raise ValueError(f"derivative={derivative!r} must be one of {', '.join(DERIVATIVES)}")
        self.distribution = distribution
        self.sigma_data = sigma_data
        self.teacher = teacher
        self.anchor = anchor
        self.to_zero = to_zero
        self.tangent_norm = tangent_norm
        self.warmup_images = warmup_images
        self.derivative = {"jvp": _jvp, "difference": _difference}[derivative]

    def __call__(
        self,
        net: Callable[..., Any],
        images: Tensor,
        labels: Tensor | None = None,
        *,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        context: Any = None,
    ) -> Tensor:
        """Loss per element [N, C, H, W]; arguments as of `DenoisingLoss`."""
        if sigma is None:
            sigma = self.distribution.sigma(torch.randn(len(images), device=images.device, dtype=images.dtype))
        if noise is None:
            noise = torch.randn_like(images)
        t, s = self._levels(sigma, context)  # [N, 1, 1, 1]
        x = images + t * noise
        given = {} if conditions is None else {"conditions": conditions}
        denoised = net(x, t, labels, target_sigma=s, **given)
        fixed = denoised.detach()
        with torch.no_grad():
            clean = images if self.teacher is None else self.teacher(x, t, labels, **given).to(images.dtype)
            delta, q = clean - fixed, s / t
            if self.anchor < 1:  # anchors, too, whose slope counts nothing: batches of one shape compile once
                slope = self.derivative(partial(_at_levels, net, labels, given), x, x - clean, t, s, fixed)
                # q x* + (1 - q)(D - dD/dτ) - D
                r = self._warmth(context)
                delta = r * (q * delta - (1 - q) * slope) + (1 - r) * delta
            weight = edm_weight(t, self.sigma_data)  # 1 / c_out²: from an error of D to one of F
            delta = delta * weight.sqrt()
            if self.tangent_norm is not None:
                size = delta.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
                normalized = delta / (size + self.tangent_norm)
                # The error of data has noise in it, whose size must not weigh the images.
                delta = normalized if self.teacher is not None else torch.where(q < 1, normalized, delta)
        if context is not None:
            self._report(context, fixed, x, images, t, delta, q == 1)
        return ((denoised - fixed) * weight.sqrt() - delta) ** 2

    def _levels(self, sigma: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """Levels t and s <= t, both [N, 1, 1, 1]."""
        sigma = sigma.flatten()
        if context is None:
            normal, chosen, zero = torch.randn_like(sigma), torch.rand_like(sigma), torch.rand_like(sigma)
        else:
            normal = context.draw("flow map: second level").to(sigma)
            chosen, zero = (context.draw(f"flow map: {name}", kind="uniform").to(sigma) for name in ("map", "zero"))
        first, second = (level.clamp(*LEVELS) for level in (sigma, self.distribution.sigma(normal)))
        is_anchor = chosen < self.anchor
        t = torch.where(is_anchor, first, torch.maximum(first, second))
        s = torch.where(zero < self.to_zero, 0, torch.minimum(first, second))
        s = torch.where(is_anchor, first, s)
        return t.view(-1, 1, 1, 1), s.view(-1, 1, 1, 1)

    def _warmth(self, context: Any) -> float:
        """Part r of the target, of which the rest is a denoiser's, at this time of the run."""
        if context is None or not self.warmup_images:
            return 1.0
        return min(context.images_seen / self.warmup_images, 1.0)

    def _report(
        self, context: Any, fixed: Tensor, x: Tensor, images: Tensor, t: Tensor, delta: Tensor, anchors: Tensor
    ) -> None:
        """Report the error of the anchors, as every denoiser does, and that of the maps."""
        seen = anchors | ~anchors.any()  # all images where no anchor is: 0 / 0 would pass for a loss that has exploded
        error, of_zero = errors((fixed - images) ** 2 * seen, x * seen, images * seen, t, self.sigma_data)
        context.report("error", error)
        context.report("error_of_zero", of_zero)
        context.report("map_error", (delta**2 * ~anchors).mean())


def _at_levels(
    net: Callable[..., Any], labels: Tensor | None, given: Mapping[str, Any], x: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """D(x; t, s)."""
    return net(x, t, labels, target_sigma=s, **given)


def _jvp(net: Callable[..., Tensor], x: Tensor, v: Tensor, t: Tensor, s: Tensor, fixed: Tensor) -> Tensor:
    """dD/dτ along the trajectory, d/de D(x + e v; e^(τ + e), s) at e = 0: tangents v of x and t of t."""
    with higher_derivatives():
        return torch.func.jvp(lambda x, t: net(x, t, s), (x, t), (v, t))[1]


def _difference(net: Callable[..., Tensor], x: Tensor, v: Tensor, t: Tensor, s: Tensor, fixed: Tensor) -> Tensor:
    """The same by a backward difference, which reuses D of the training pass."""
    before = t * torch.exp(x.new_tensor(-STEP))
    return (fixed - net(x - STEP * v, before, torch.minimum(s, before))) / STEP
