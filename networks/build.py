"""Build a network from its description."""

from typing import Any

from edm2.networks.config import NetworkConfig
from edm2.networks.ladder import UNetA, UNetB, UNetC, UNetD, UNetE, UNetF
from edm2.networks.precond import Precond
from edm2.networks.unet import UNet

UNETS: dict[str, Any] = {"A": UNetA, "B": UNetB, "C": UNetC, "D": UNetD, "E": UNetE, "F": UNetF, "G": UNet}
"""U-Nets of the paper's configurations (Table 1)."""


def build_network(config: NetworkConfig) -> Precond:
    """Build a denoiser with the uncertainty head, freshly initialized, in training mode, on torch's default device.

    Raises:
        ValueError: channels that cannot be split into heads or groups.
    """
    unet = UNETS[config.config](config)
    fourier, linear = unet.fourier(config.logvar_channels), unet.conv(config.logvar_channels, 1)
    return Precond(unet, config.sigma_data, fourier, linear)
