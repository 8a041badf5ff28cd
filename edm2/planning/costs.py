"""What a run costs, before it starts: FLOPs and memory, counted on tensors without data (torch's meta device)."""

import weakref
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from edm2.networks import NetworkConfig, Precond, build_network
from edm2.networks.skeleton import blocks
from edm2.training import EDM2Loss, TrainingConfig
from edm2.training.config import DTYPES
from edm2.training.distributed.strategies import recompute_blocks_
from edm2.training.run.disk import DiskForecast, file_sizes

TRAINING_FLOPS = 3
"""Evaluations that a training step is worth: the backward pass takes two gradients, of activations and of weights."""

FLOAT32 = 4
"""Bytes of a number: weights, gradients, Adam's moments and averages are float32 whatever the activations are."""

SPARE = {"cuda": (0.1, 0.6e9), "mps": (0.1, 0.6e9), "cpu": (0.5, 0.4e9)}
"""What libraries and the allocator take beside the tensors, by kind of device: a share of the tensors, and bytes."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process on its device, by what they are for."""

    weights: int
    """Weights; with shares (FSDP2), this process's rows of them."""
    adam: int
    """Adam's two moments of these."""
    averages: int
    """The averaged weights."""
    gradients: int
    """Of the weights."""
    activations: int
    """What a step has beside at its worst moment: activations kept for the backward pass, and results on their way. At
    least the copy of an average from which a snapshot is written, which comes after a step."""
    borrowed: int
    """With shares, whole weights and gradients of the blocks at work."""
    spare: int
    """Allowance for libraries, workspaces of convolutions and gaps between tensors."""

    @property
    def kept(self) -> int:
        """What is there all the time. Checkpoints are copied to the CPU before they are written: as much, there."""
        return self.weights + self.adam + self.averages

    @property
    def step(self) -> int:
        """What a step adds at its worst moment."""
        return self.gradients + self.activations + self.borrowed

    @property
    def total(self) -> int:
        """All of it."""
        return self.kept + self.step + self.spare


@lru_cache
def count_parameters(network: NetworkConfig) -> int:
    """Trainable numbers, those of u(sigma) included."""
    return sum(p.numel() for p in _without_data(network).parameters())


@dataclass(frozen=True)
class ParameterBytes:
    """Bytes of float32 parameters, or of as many gradients."""

    blocks: tuple[int, ...]
    """Of each block of the network, without scalars."""
    rest: int
    """Of what lies outside of the blocks, without scalars."""
    scalars: int
    """Of the gains, which every process has."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.blocks) + self.rest + self.scalars


@lru_cache
def parameter_bytes(network: NetworkConfig, shares: int = 1) -> ParameterBytes:
    """Bytes of the parameters of each of several processes that divide them by rows; the last rows are filled up."""

    def held(module: nn.Module) -> int:
        tensors = [p for p in module.parameters() if p.ndim]
        return FLOAT32 * sum(-(-len(p) // shares) * p[0].numel() for p in tensors)

    net = _without_data(network)
    of_blocks = tuple(map(held, blocks(net)))
    scalars = FLOAT32 * sum(not p.ndim for p in net.parameters())
    return ParameterBytes(of_blocks, held(net) - sum(of_blocks), scalars)


@lru_cache
def count_flops(network: NetworkConfig) -> int:
    """FLOPs of one evaluation of one image, in the paper's unit: a multiplication with its addition counts as one.

    Convolutions, linear layers and attention; the elementwise rest, which is left out, adds 1 to 2 %.
    """
    net = _without_data(network).eval()
    net.compute_dtype = torch.float32
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(_images(network, 1), torch.empty(1, device="meta"))
    return counter.get_total_flops() // 2


def disk_forecast(config: TrainingConfig) -> DiskForecast:
    """What a run will have written."""
    return DiskForecast(config, file_sizes(config, _without_data(config.network)))


def estimate_memory(config: TrainingConfig, processes: int = 1) -> MemoryEstimate:
    """Memory of a process that trains alone, or of each of several, from the tensors that live during a step of the
    network on the meta device.

    Attention there keeps its matrix for the backward pass, which fused kernels do not, so networks with much attention
    are estimated a few per cent too high.

    Raises:
        ValueError: the processes cannot share a step.
    """
    share = config.share(processes)
    images = min(config.images_per_forward, share)
    several_rounds = images < share
    sharded = config.shard and processes > 1
    whole = parameter_bytes(config.network)
    own = parameter_bytes(config.network, processes if sharded else 1).total
    gradients_stay = processes > 1 or several_rounds
    peak = _peak_of_a_step(config.network, DTYPES[config.precision], images, gradients_stay, config.recompute)
    tensors = {
        "weights": own,
        "adam": 2 * own,
        "averages": config.num_averages * own,
        "gradients": _gradients(config, processes, several_rounds),
        "activations": max(peak - whole.total, own),
        "borrowed": _borrowed(whole) if sharded else 0,
    }
    proportion, constant = SPARE[torch.device(config.device).type]
    return MemoryEstimate(**tensors, spare=int(proportion * sum(tensors.values()) + constant))


def _gradients(config: TrainingConfig, processes: int, several_rounds: bool) -> int:
    """Shares keep gradients of their rows, and whole ones while these add up over rounds. Copies (DDP) exchange them
    in buckets that are always there, beside which those of earlier rounds add up."""
    whole = parameter_bytes(config.network).total
    if processes == 1:
        return whole
    if config.shard:
        return whole if several_rounds else parameter_bytes(config.network, processes).total
    return 2 * whole if several_rounds else whole


def largest_micro_batch(config: TrainingConfig, memory: float, processes: int = 1) -> int | None:
    """The most images per forward pass, up to `config`'s, that `memory` bytes suffice for; None: not even one.

    Memory is close to a straight line in the number of images, which spares trying every number.
    """

    def needed(images: int) -> int:
        return estimate_memory(replace(config, micro_batch=images), processes).total

    share = config.share(processes)
    most = min(config.images_per_forward, share)
    if needed(most) <= memory:
        return most
    per_image = (needed(most) - needed(1)) / max(most - 1, 1)
    for images in range(most - 1, 0, -1):
        on_the_line = needed(1) + per_image * (images - 1)
        if share % images == 0 and on_the_line <= memory and needed(images) <= memory:
            return images
    return None


class LiveTensors(TorchDispatchMode):
    """Adds up the memory of the tensors that are alive, of all that operations inside the context make.

    Views of what was there before are no new memory.

    Attributes:
        now: Bytes alive.
        peak: Most bytes alive at any moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in given:
                self._add(storage)
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


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


@lru_cache
def _peak_of_a_step(
    network: NetworkConfig, dtype: torch.dtype, images: int, gradients_stay: bool, recompute: bool
) -> int:
    """Most bytes that the forward and backward pass of one round have alive beside the weights."""
    net = _without_data(network, recompute).train()
    net.compute_dtype = dtype
    with LiveTensors() as live:
        if gradients_stay:  # those of earlier rounds, or their buckets
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
        EDM2Loss()(net, _images(network, images)).sum().backward()
    net.zero_grad(set_to_none=True)
    return live.peak


def _borrowed(whole: ParameterBytes) -> int:
    """Bytes of what lies outside of the blocks, and of two blocks with weights and gradients: one is at work while the
    other's travel."""
    return whole.rest + 2 * 2 * max(whole.blocks)


@lru_cache(maxsize=4)
def _without_data(network: NetworkConfig, recompute: bool = False) -> Precond:
    """To be left as it was: others get the same one, as building the largest networks takes half a second."""
    with torch.device("meta"):
        net = build_network(network)
    if recompute:
        recompute_blocks_(net)
    return net


def _images(network: NetworkConfig, count: int) -> Tensor:
    return torch.empty(count, network.img_channels, *network.size, device="meta")
