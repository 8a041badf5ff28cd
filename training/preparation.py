"""Networks made ready for training: ours as the settings ask, any other module as it is."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from edm2.networks import Precond
from edm2.training.config import TrainingConfig
from edm2.training.distributed.strategies import recompute_blocks_
from edm2.training.settings import DTYPES


def prepare_(net: nn.Module, config: TrainingConfig, loss: Any, device: torch.device) -> None:
    """Move a network to its device, into training mode, and apply settings that concern the network."""
    if not isinstance(net, Precond):
        _check_foreign(net, config, loss)
        net.to(device).train()
        return
    layout = torch.contiguous_format if config.shard else net.unet.memory_format  # FSDP2 takes no other
    net.to(device, memory_format=layout).train()  # type: ignore[call-overload]  # unknown to torch's stubs
    net.compute_dtype = DTYPES[config.precision]
    if not uses_uncertainty(loss):
        net.logvar_linear.requires_grad_(False)  # it gets no gradient, and other ranks would wait for one
    if config.recompute:
        recompute_blocks_(net)


def uses_uncertainty(loss: Any) -> bool:
    """True if a loss, or its weighting, says that it uses u(sigma) of the network."""
    return getattr(getattr(loss, "weighting", loss), "uses_uncertainty", False)


def draws_random_numbers(config: TrainingConfig) -> bool:
    """True if the network may draw random numbers in training."""
    return config.network is None or config.network.dropout > 0


def _check_foreign(net: nn.Module, config: TrainingConfig, loss: Any) -> None:
    if config.precision != "fp32":
        raise ValueError(
            f"precision={config.precision!r} is for networks that edm2 builds: leave it at fp32, and let the network "
            "choose the dtype of its activations"
        )
    if config.recompute:
        raise ValueError("recompute is for networks that edm2 builds; leave it out")
    if config.diagnostics_every is not None:
        raise ValueError("diagnostics know the layers of networks that edm2 builds; leave out diagnostics_every")
    if config.weighting == "pareto":
        raise ValueError("weighting='pareto' is for networks that edm2 builds; choose another, such as 'edm'")
    if uses_uncertainty(loss) and "return_logvar" not in inspect.signature(net.forward).parameters:
        raise ValueError(
            "this weighting needs u(sigma), which the network does not return (it has no argument return_logvar); "
            "choose a static one, such as weighting='edm'"
        )


class LevelDenoiser:
    """A network of the user's, to be called as instruments call ours: with one noise level for all images.

    Args:
        net: Called as net(noisy, sigma, labels), with sigma [N].
        sigma_data: Standard deviation of its data.
    """

    def __init__(self, net: nn.Module, sigma_data: float) -> None:
        self.net = net
        self.sigma_data = sigma_data

    def __call__(self, x: Tensor, sigma: float, labels: Tensor | None = None, **conditions: Any) -> Tensor:
        """Denoise images [N, C, H, W]; `conditions=` is passed on if given."""
        return self.net(x, torch.full((len(x),), sigma, device=x.device), labels, **conditions)
