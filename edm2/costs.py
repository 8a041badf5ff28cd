"""What a run costs, before it starts: FLOPs and memory, counted on tensors without data (torch's meta device)."""

import weakref
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from edm2.networks import NetworkConfig, Precond, build_network
from edm2.training import EDM2Loss, TrainingConfig
from edm2.training.trainer import DTYPES

TRAINING_FLOPS = 3
"""Evaluations that a training step is worth: the backward pass takes two gradients, of activations and of weights."""

SPARE = {"cuda": (0.1, 0.6e9), "mps": (0.1, 0.6e9), "cpu": (0.5, 0.4e9)}
"""What libraries and the allocator take beside the tensors, by kind of device: a share of the tensors, and bytes."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device."""

    kept: int
    """Weights, Adam's two moments and the averaged weights, all float32; there all the time."""
    step: int
    """What a step adds at its worst moment: activations kept for the backward pass, and gradients."""
    spare: int
    """Allowance for libraries, workspaces of convolutions and gaps between tensors."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.kept + self.step + self.spare


@lru_cache
def count_parameters(network: NetworkConfig) -> int:
    """Trainable numbers, those of u(sigma) included."""
    return sum(p.numel() for p in _without_data(network).parameters())


@lru_cache
def count_flops(network: NetworkConfig) -> int:
    """FLOPs of one evaluation of one image, in the paper's unit: a multiplication with its addition counts as one.

    Convolutions, linear layers and attention; the elementwise rest, which is left out, adds 1 to 2 %.
    """
    net = _without_data(network).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(_images(network, 1), torch.empty(1, device="meta"))
    return counter.get_total_flops() // 2


def estimate_memory(config: TrainingConfig) -> MemoryEstimate:
    """Memory that a run takes, from the tensors that live during a step of the network on the meta device.

    Attention there keeps its matrix for the backward pass, which fused kernels do not, so networks with much attention
    are estimated a few per cent too high.
    """
    weights = 4 * count_parameters(config.network)
    kept = weights * (3 + config.num_averages)
    images = config.images_per_forward
    step = _peak_of_a_step(config.network, DTYPES[config.precision], images, images < config.batch_size)
    share, constant = SPARE[torch.device(config.device).type]
    return MemoryEstimate(kept, step, int(share * (kept + step) + constant))


def largest_micro_batch(config: TrainingConfig, memory: float) -> int | None:
    """The most images per forward pass, up to `config`'s, that `memory` bytes suffice for; None: not even one.

    Memory is close to a straight line in the number of images, which spares trying every number.
    """

    def needed(images: int) -> int:
        return estimate_memory(replace(config, micro_batch=images)).total

    most = config.images_per_forward
    per_image = (needed(most) - needed(1)) / max(most - 1, 1)
    for images in range(most, 0, -1):
        on_the_line = needed(1) + per_image * (images - 1)
        if config.batch_size % images == 0 and on_the_line <= memory and needed(images) <= memory:
            return images
    return None


class LiveTensors(TorchDispatchMode):
    """Adds up the memory of the tensors that are alive, of all that operations inside the context make.

    Attributes:
        now: Bytes alive.
        peak: Most bytes alive at any moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        """Tensors share storages: each counts once, until the last of its tensors is gone."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._remove(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _remove(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size


@lru_cache
def _peak_of_a_step(network: NetworkConfig, dtype: torch.dtype, images: int, accumulating: bool) -> int:
    """Most bytes that the forward and backward pass of one round have alive beside the weights."""
    net = _without_data(network).train()
    net.compute_dtype = dtype
    with LiveTensors() as live:
        if accumulating:  # gradients of the rounds before are there
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
        EDM2Loss()(net, _images(network, images)).sum().backward()
    return live.peak


def _without_data(network: NetworkConfig) -> Precond:
    with torch.device("meta"):
        return build_network(network)


def _images(network: NetworkConfig, count: int) -> Tensor:
    return torch.empty(count, network.img_channels, *network.size, device="meta")
