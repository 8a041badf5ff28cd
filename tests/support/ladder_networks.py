"""Small networks of every letter of the ladder, with weights as after some training, and inputs for them."""

import math
from typing import Any

import torch
from torch import Tensor

from edm2.networks import NetworkConfig, Precond, build_network

LETTERS = "ABCDEFG"

SMALL: dict[str, Any] = {
    "img_resolution": 16,
    "img_channels": 3,
    "label_dim": 5,
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (8,),
    "channels_per_head": 16,
    "logvar_channels": 16,
}
"""Every kind of block: up, down, keep, changing channels or not, with attention (two heads) and without."""


def new_network(letter: str, seed: int = 0, **changes: Any) -> Precond:
    """A network as it is built, in evaluation mode."""
    torch.manual_seed(seed)
    return build_network(NetworkConfig(**SMALL | {"config": letter} | changes)).eval()


def a_network(letter: str, seed: int = 0, **changes: Any) -> Precond:
    """One of which every part matters: what starts at zero or one does so no more."""
    net = new_network(letter, seed, **changes)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.unique().numel() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter) if parameter.ndim else 0.7)
    return net


def an_input(net: Precond, n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise levels over the whole range, classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, net.config.img_channels, *net.config.size, generator=generator)
    sigma = torch.logspace(math.log10(0.002), math.log10(80), n)
    labels = torch.randint(max(net.config.label_dim, 1), (n,), generator=generator)
    return (sigma**2 + 0.25).sqrt()[:, None, None, None] * x, sigma, labels


def raw_output(net: Precond, *inputs: Tensor) -> Tensor:
    """F, which D hides behind c_skip x at low noise."""
    seen: list[Tensor] = []
    handle = net.unet.register_forward_hook(lambda module, args, y: seen.append(y))
    net(*inputs)
    handle.remove()
    return seen[0]


def shapes(net: Precond) -> dict[str, tuple[int, ...]]:
    """Shapes of the U-Net's tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in net.unet.state_dict().items()}
