"""Networks of the user's own (`Trainer(config, net=...)`), to be sampled like ours."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from edm2.networks import Precond, fold
from edm2.networks.precond import ABILITIES, MAP_LEVELS
from edm2.sampling.guided_network import GuidedNetwork


@dataclass(frozen=True)
class DrawnImages:
    """Form of the images that a network draws: the fields of `NetworkConfig` that any network has."""

    img_resolution: tuple[int, int]
    """Height and width."""
    img_channels: int
    """Channels."""
    label_dim: int
    """Number of classes; 0 for an unconditional network."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), as `NetworkConfig.size`."""
        return self.img_resolution

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "DrawnImages":
        """Read the entry `images` of a snapshot.

        Raises:
            ValueError: there is none, which training wrote, or it makes no sense.
        """
        match metadata.get("images"):
            case {
                "img_resolution": [int(height), int(width)],
                "img_channels": int(channels),
                "label_dim": int(classes),
            }:
                if min(height, width, channels) > 0 and classes >= 0:
                    return cls((height, width), channels, classes)
        raise ValueError("does not say which images its network draws, as snapshots of this version do; train it anew")


class ExternalNetwork(nn.Module):
    """A network of the user's own with the attribute `config` by which ours are sampled.

    Args:
        net: Called as net(noisy, sigma, labels), with sigma [N], and `conditions=` if given.
        config: What it draws.
        empty_classes: Classes without an image in training, which sampling leaves out unless asked for.
    """

    def __init__(self, net: nn.Module, config: DrawnImages, empty_classes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.empty_classes = empty_classes

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None, **conditions: Any) -> Tensor:
        """D(x; sigma) of images [N, C, H, W], at one noise level for all of them."""
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
        return self.net(x, sigma.expand(len(x)), labels, **conditions)  # sigma: [N]


def empty_classes_of(metadata: Mapping[str, Any], label_dim: int) -> tuple[int, ...]:
    """Classes without an image in training, as a snapshot's metadata say; none if they say nothing, or only these."""
    data = metadata.get("data")
    named = data.get("empty_classes") if isinstance(data, dict) else None
    known = {c for c in named if type(c) is int and 0 <= c < label_dim} if isinstance(named, list) else set()
    return tuple(sorted(known)) if len(known) < label_dim else ()


def ways_to_sample(metadata: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[int, tuple[float, ...]]]:
    """Abilities of a network and the levels of its flow map, as a snapshot's metadata say; a denoiser if nothing."""
    abilities, levels, network = (metadata.get(key) for key in ("abilities", "map_levels", "network"))
    known = [name for name in ABILITIES if name in abilities] if isinstance(abilities, list) else []
    if not known:
        is_map = isinstance(network, dict) and network.get("target_level") is not None
        known = ["denoise", "map"] if is_map else ["denoise"]
    listed = levels.items() if isinstance(levels, dict) else ()
    said = {int(steps): tuple(values) for steps, values in listed if _are_levels(steps, values)}
    return tuple(known), said or MAP_LEVELS


def _are_levels(steps: str, levels: Any) -> bool:
    numbers = isinstance(levels, list) and all(type(level) in (int, float) and 0 <= level < 1e9 for level in levels)
    return numbers and steps.isdecimal() and len(levels) == int(steps) + 1


SampledNetwork: TypeAlias = Precond | ExternalNetwork | GuidedNetwork


def ready_to_sample(net: SampledNetwork, dtype: torch.dtype | None = None) -> Any:
    """Copy a network for inference: ours folded, to compute in `dtype`; another as it is, in the dtype it chooses."""
    if isinstance(net, GuidedNetwork):
        return net.folded(dtype)
    return copy.deepcopy(net) if isinstance(net, ExternalNetwork) else fold(net, dtype)
