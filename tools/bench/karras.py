"""`KarrasUnet` of the pip package denoising-diffusion-pytorch, at about the parameters of one of our networks.

It is another author's reading of config G, under the MIT licence. Its package needs torchvision, so it is installed
without what it needs, and only its modules `karras_unet` and `attend` are run, not the package's own `__init__`.

It differs from ours: widths double from level to level up to a maximum, attention has four keys and values of its own
more, resampling is bilinear, there is no preconditioning and no u(sigma). So the width is chosen for the parameters.
"""

import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edm2.networks import NetworkConfig
from edm2.planning.costs import count_parameters

PACKAGE = "denoising_diffusion_pytorch"
TOLERANCE = 0.02
"""Relative difference of parameters that counts as equal."""


class MissingRival(RuntimeError):
    """An implementation to compare with is not installed; the message is one line with the remedy."""


def load_karras_unet() -> type[nn.Module]:
    """The class.

    Raises:
        MissingRival: it is not installed, or something that it needs is not.
    """
    try:
        with _without_its_init():
            return importlib.import_module(f"{PACKAGE}.karras_unet").KarrasUnet
    except ImportError as error:
        raise MissingRival(
            f"KarrasUnet cannot be imported ({error}); pip install --no-deps --target DIR denoising-diffusion-pytorch "
            "einops, and add DIR to PYTHONPATH"
        ) from None


@contextmanager
def _without_its_init() -> Iterator[None]:
    """An empty module in the package's place, through which its modules are found; gone afterwards."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise ImportError(f"no module named {PACKAGE}")
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == PACKAGE}
    package = ModuleType(PACKAGE)
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules[PACKAGE] = package
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules |= before


def check_karras_unet(network: NetworkConfig) -> None:
    """Raises as `equal_karras_unet` does, where it takes no time to find out."""
    load_karras_unet()
    if network.size[0] != network.size[1]:
        raise ValueError(f"KarrasUnet is for square images, not {network.size[0]}x{network.size[1]}")


def equal_karras_unet(network: NetworkConfig) -> nn.Module:
    """A `KarrasUnet` for the same images and classes, as deep, with as many parameters within 2 %; gains are 1.

    Widths that are multiples of 16 are tried first, then of 8 and so on, as odd widths would be slower.

    Raises:
        MissingRival: it is not installed.
        ValueError: it does not come in this size.
    """
    kind = load_karras_unet()
    target = count_parameters(network)
    for grain in (16, 8, 4, 2, 1):
        fitting = [widths for widths in _candidates(kind, network, grain, target) if widths[0] <= TOLERANCE]
        if fitting:
            _, _, dim, dim_max = min(fitting, key=lambda widths: widths[1])
            return _with_open_gains(_make(kind, network, dim, dim_max))
    raise ValueError(f"KarrasUnet cannot have {target:,} parameters within {TOLERANCE:.0%}")


def _candidates(
    kind: type[nn.Module], network: NetworkConfig, grain: int, target: int
) -> Iterator[tuple[float, float, int, int]]:
    """(Relative difference of parameters, how oddly it tapers, first width, last width) of networks near the target."""
    ours = network.model_channels
    for dim in range(max(ours * 2 // 3 // grain, 1) * grain, ours * 5 // 4 + grain, grain):
        low, high = 1, math.ceil(dim * 2 ** (len(network.channel_mult) - 1) / grain)
        while low < high:  # the first last width with at least as many parameters
            middle = (low + high) // 2
            low, high = (low, middle) if _count(kind, network, dim, middle * grain) >= target else (middle + 1, high)
        for dim_max in {max(low - 1, 1) * grain, low * grain}:
            difference = abs(_count(kind, network, dim, dim_max) / target - 1)
            yield difference, abs(math.log(dim_max / dim / max(network.channel_mult))), dim, dim_max


def _count(kind: type[nn.Module], network: NetworkConfig, dim: int, dim_max: int) -> int:
    with torch.device("meta"):
        net = _make(kind, network, dim, dim_max)
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def _make(kind: type[nn.Module], network: NetworkConfig, dim: int, dim_max: int) -> nn.Module:
    return kind(
        image_size=network.size[0],
        dim=dim,
        dim_max=dim_max,
        num_classes=network.label_dim or None,
        channels=network.img_channels,
        num_downsamples=len(network.channel_mult) - 1,
        num_blocks_per_stage=network.num_blocks,
        attn_res=network.attn_resolutions,
        attn_dim_head=network.channels_per_head,
        dropout=network.dropout,
    )


@torch.no_grad()
def _with_open_gains(net: nn.Module) -> nn.Module:
    for parameter in net.parameters():
        if parameter.ndim == 0:
            parameter.fill_(1)
    return net


def count_karras_flops(net: nn.Module, network: NetworkConfig) -> int:
    """Of one evaluation of one image, a multiplication and an addition being two."""
    shape = 1, network.img_channels, *network.size
    device = next(net.parameters()).device
    labels = torch.zeros(1, network.label_dim, device=device) if network.label_dim else None
    training = net.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(shape, device=device), torch.zeros(1, device=device), class_labels=labels)
    net.train(training)
    return counter.get_total_flops()
