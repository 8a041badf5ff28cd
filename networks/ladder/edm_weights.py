"""Published weights of EDM's networks (Karras et al. 2022, ADM architecture) into config A or B."""

from collections.abc import Mapping

import torch
from torch import Tensor

from edm2.networks.precond import Precond

CONFIGS = ("A", "B")
"""Configurations of EDM's architecture."""


@torch.no_grad()
def load_edm_state_dict(net: Precond, state: Mapping[str, Tensor]) -> None:
    """Overwrite the weights of `net` by those of a published EDM network; all of them or, on an error, none.

    Args:
        net: A network of config A or B. Its u(sigma), which EDM has not, stays as it is.
        state: Tensors by published name, `model.enc.64x64_conv.weight` and so on. Resampling filters, which are fixed
            here, are passed over.

    Raises:
        ValueError: another configuration, or tensors missing, foreign or of another shape.
    """
    if net.config.config not in CONFIGS:
        raise ValueError(f"EDM's weights are for config {' or '.join(CONFIGS)}, not for config {net.config.config}")
    own = {f"model.{name}": tensor for name, tensor in net.unet.state_dict().items()}
    given = {name: tensor for name, tensor in state.items() if not name.endswith(".resample_filter")}
    for name in (*own, *given):
        if name not in given or name not in own:
            where = "not in the state dict" if name not in given else "not in the network"
            raise ValueError(f"EDM's weights do not fit this network: {name} is {where}; compare the configurations")
        if own[name].shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)} in the state dict, {tuple(own[name].shape)} in the network"
            raise ValueError(f"EDM's weights do not fit this network: {name} is {shapes}; compare the configurations")
    for name, tensor in given.items():
        own[name].copy_(tensor)
