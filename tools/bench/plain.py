"""Training and sampling with config G in the plain form in which papers print them, to time ours against.

The network is `edm2.networks.reference`. Around it nothing is done for speed either: Adam, averages and non-finite
gradients go tensor by tensor, as torch's defaults have it; half precision comes from casting, not from autocast. The
sampler is EDM's Algorithm 2 (arXiv 2206.00364).
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from edm2.networks import Precond
from edm2.networks.reference import ReferencePrecond, reference_loss


def plain_copy(net: Precond) -> ReferencePrecond:
    """Copy a network of config G into its plain form, with its weights, mode, dtype and device.

    Raises:
        ValueError: a network of another configuration.
    """
    plain = ReferencePrecond(net.config).to(next(net.parameters()).device)
    plain.load_state_dict(net.state_dict())
    plain.compute_dtype = net.compute_dtype
    return plain.train(net.training)


class PlainEMA:
    """Power-function averages (Eq. 127): a copy of the network per length, updated tensor by tensor."""

    def __init__(self, net: nn.Module, gammas: Sequence[float]) -> None:
        self.net = net
        self.gammas = tuple(gammas)
        self.averages = [copy.deepcopy(net).requires_grad_(False) for _ in gammas]

    @torch.no_grad()
    def update(self, images_seen: int, batch_size: int) -> None:
        """Update after a step of `batch_size` images, which `images_seen` includes."""
        for gamma, average in zip(self.gammas, self.averages, strict=True):
            beta = (1 - batch_size / images_seen) ** (gamma + 1)
            for p_net, p_average in zip(self.net.parameters(), average.parameters(), strict=True):
                p_average.lerp_(p_net, 1 - beta)


class PlainTraining:
    """Training as Algorithm 1 and Appendix D.2 print it.

    Args:
        net: Network in training mode; its forward pass normalizes the parameters.
        batch_size: Images per step.
        learning_rate: Learning rate of the step that begins at a number of images seen.
        betas: Adam's.
        gammas: Exponents of the averages.
        loss_scale: Constant factor on the loss, for float16.
    """

    def __init__(
        self,
        net: ReferencePrecond,
        batch_size: int,
        learning_rate: Callable[[int], float],
        betas: tuple[float, float] = (0.9, 0.99),
        gammas: Sequence[float] = (16.97, 6.94),
        loss_scale: float = 1.0,
    ) -> None:
        self.net = net
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.loss_scale = loss_scale
        self.optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate(0), betas=betas)
        self.ema = PlainEMA(net, gammas)
        self.images_seen = 0

    def step(self, rounds: Iterable[tuple[Tensor, Tensor | None, Tensor, Tensor]]) -> None:
        """Take one optimizer step on (images, one-hot labels, sigma, noise) of each accumulation round."""
        self.optimizer.zero_grad(set_to_none=True)
        for images, labels, sigma, noise in rounds:
            loss = reference_loss(self.net, images, labels, sigma, noise, self.net.config.sigma_data)
            loss.sum().mul(self.loss_scale / self.batch_size).backward()
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=0, neginf=0, out=parameter.grad)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.images_seen)
        self.optimizer.step()
        self.images_seen += self.batch_size
        self.ema.update(self.images_seen, self.batch_size)


# ----------------------------------------------------------------------------------------------------------------------
# Sampling


@torch.no_grad()
def plain_heun(
    net: Callable[..., Tensor],
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    num_steps: int = 32,
    guide: Callable[..., Tensor] | None = None,
    guidance: float = 1,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
) -> Tensor:
    """Draw images by Heun's method (EDM's Algorithm 2) without fresh noise; a guide is evaluated without labels."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        D_x = net(x, t, labels)
        return D_x if guide is None else guide(x, t).lerp(D_x, guidance)

    index = torch.arange(num_steps, device=noise.device)
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    t_steps = (start + index / max(num_steps - 1, 1) * (end - start)) ** rho
    t_steps = torch.cat([t_steps, torch.zeros_like(t_steps[:1])])
    x_next = noise * t_steps[0]
    for i, (t, t_next) in enumerate(pairwise(t_steps)):
        x = x_next
        d = (x - denoise(x, t)) / t
        x_next = x + (t_next - t) * d
        if i < num_steps - 1:
            d_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t) * (d + d_next) / 2
    return x_next
