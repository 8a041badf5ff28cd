"""From the description of a network to the network."""

from edm2.networks.config import NetworkConfig
from edm2.networks.layers import MPConv, MPFourier
from edm2.networks.precond import Precond, UncertaintyHead
from edm2.networks.unet import UNet


def build_network(config: NetworkConfig) -> Precond:
    """A freshly initialized denoiser with the uncertainty head, in training mode, on torch's default device."""
    unet = UNet(config)
    head = UncertaintyHead(MPFourier(config.logvar_channels), MPConv(config.logvar_channels, 1))
    return Precond(unet, config.sigma_data, head)
