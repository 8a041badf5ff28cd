"""What the denoiser gets wrong, and what it expects to get wrong: u(sigma) (Eq. 21)."""

import torch
from torch import Tensor

from edm2.networks import Precond
from edm2.training.diagnostics.batches import Batch
from edm2.training.diagnostics.layers import listening
from edm2.training.objective import DenoisingLoss
from edm2.training.weighting import edm_weight


class DenoiserError:
    """lambda(sigma) (D - y)² and e^u per element, summed over images; heard from the denoiser."""

    def __init__(self, net: Precond) -> None:
        self.net = net
        self.sums = torch.zeros(2)

    def listen(self, loss: DenoisingLoss, batch: Batch) -> Tensor:
        """The training loss per element; on the way, note what the denoiser said."""
        heard: list[tuple[Tensor, Tensor]] = []
        with listening([self.net], lambda net, output: heard.append(output)):
            elements = loss(self.net, batch.images, batch.labels, sigma=batch.sigma, noise=batch.noise)
        (denoised, u), *_ = heard
        sigma = batch.sigma.reshape(-1, 1, 1, 1).cpu().double()  # in this order: MPS has no float64
        weight = edm_weight(sigma, self.net.sigma_data).to(denoised)
        error = (weight * (denoised.detach() - batch.images) ** 2).mean(dim=(1, 2, 3)).sum()
        self.sums += torch.stack([error, u.detach().exp().sum()]).cpu()
        return elements
