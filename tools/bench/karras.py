"""`KarrasUnet` of the pip package denoising-diffusion-pytorch, at about the parameters of one of our networks.

It is another author's reading of config G, under the MIT licence. Its package needs torchvision, so it is installed
without what it needs, and only its modules `karras_unet` and `attend` are run, not the package's own `__init__`.

It differs from ours: widths double from level to level up to a maximum, attention has four more keys and values of its
own, resampling is bilinear, there is no preconditioning and no u(sigma). So the width is chosen for the parameters.
"""

import importlib
import importlib.util
import math
import sys
from bisect import bisect_left
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edm2.networks import NetworkConfig
from edm2.planning.costs import count_parameters
from edm2.tools.bench.workload import open_gains_

PACKAGE = "denoising_diffusion_pytorch"
TOLERANCE = 0.02
"""Relative difference of parameters that counts as equal."""


class MissingRival(RuntimeError):
    """An implementation to compare with is not installed; the message is one line with the remedy."""


def load_karras_unet() -> type[nn.Module]:
    """Load the class.

    Raises:
        MissingRival: it is not installed, or something that it needs is not.
    """
    try:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None:
            raise ImportError(f"no module named {PACKAGE}")
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)  # an empty package: its __init__ is not run
        return importlib.import_module(f"{PACKAGE}.karras_unet").KarrasUnet
    except ImportError as error:
        raise MissingRival(
            f"KarrasUnet cannot be imported ({error}); pip install --no-deps --target DIR denoising-diffusion-pytorch "
            "einops, and add DIR to PYTHONPATH"
        ) from None
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


def check_karras_unet(network: NetworkConfig) -> None:
    """Raise what `equal_karras_unet` would raise, where that takes no time to find out."""
    load_karras_unet()
    if network.size[0] != network.size[1]:
        raise ValueError(f"KarrasUnet is for square images, not {network.size[0]}x{network.size[1]}")


def equal_karras_unet(network: NetworkConfig) -> nn.Module:
    """Make a `KarrasUnet` for the same images and classes, as deep, with as many parameters within 2 %; gains are 1.

    Widths that are multiples of 16 are tried first, then of 8 and so on, as odd widths would be slower.

    Raises:
        MissingRival: it is not installed.
        ValueError: it does not come in this size.
    """
    kind = load_karras_unet()
    for grain in (16, 8, 4, 2, 1):
        if fitting := list(_fitting_widths(kind, network, grain)):
            _, dim, dim_max = min(fitting)
            net = _make(kind, network, dim, dim_max)
            open_gains_(net)
            return net
    raise ValueError(f"KarrasUnet cannot have {count_parameters(network):,} parameters within {TOLERANCE:.0%}")


def _fitting_widths(kind: type[nn.Module], network: NetworkConfig, grain: int) -> Iterator[tuple[float, int, int]]:
    """Yield (difference to our taper, first width, last width) of networks with as many parameters as ours."""

    def count(dim: int, dim_max: int) -> int:
        with torch.device("meta"):
            net = _make(kind, network, dim, dim_max)
        return sum(p.numel() for p in net.parameters() if p.requires_grad)

    target, ours = count_parameters(network), network.model_channels
    for dim in range(max(ours * 2 // 3 // grain, 1) * grain, ours * 5 // 4 + grain, grain):
        last_widths = range(grain, dim * 2 ** (len(network.channel_mult) - 1) + grain, grain)
        i = bisect_left(last_widths, target, key=partial(count, dim))
        for dim_max in last_widths[max(i - 1, 0) : i + 1]:
            if abs(count(dim, dim_max) / target - 1) <= TOLERANCE:
                yield abs(math.log(dim_max / dim / max(network.channel_mult))), dim, dim_max


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


def count_karras_flops(net: nn.Module, network: NetworkConfig) -> int:
    """Count the FLOPs of one evaluation of one image; a multiplication and an addition are two."""
    device = next(net.parameters()).device
    labels = torch.zeros(1, network.label_dim, device=device) if network.label_dim else None
    image = torch.zeros(1, network.img_channels, *network.size, device=device)
    training = net.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(image, torch.zeros(1, device=device), class_labels=labels)
    net.train(training)
    return counter.get_total_flops()
