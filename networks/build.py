"""From the description of a network to the network."""

from edm2.networks.config import NetworkConfig
from edm2.networks.ladder import UNetA, UNetB, UNetC, UNetD, UNetE, UNetF
from edm2.networks.precond import Precond
from edm2.networks.skeleton import UNetSkeleton
from edm2.networks.unet import UNet

UNETS: dict[str, type[UNetSkeleton]] = {
    "A": UNetA, "B": UNetB, "C": UNetC, "D": UNetD, "E": UNetE, "F": UNetF, "G": UNet,
}  # fmt: skip
"""U-Nets by letter of the ladder (Table 1)."""


def build_network(config: NetworkConfig) -> Precond:
    """A freshly initialized denoiser with the uncertainty head, in training mode, on torch's default device.

    Raises:
        ValueError: channels that cannot be split into heads or groups.
    """
    unet = UNETS[config.config](config)
    return Precond(unet, config.sigma_data, unet.uncertainty_head())
