"""Costs of a run, before it starts: FLOPs and memory, counted on tensors without data (torch's meta device)."""

import os
import weakref
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from edm2.networks import NetworkConfig, Precond, build_network
from edm2.networks.blocks import blocks
from edm2.training import EDM2Loss, TrainingConfig
from edm2.training.config import DTYPES
from edm2.training.distributed.strategies import recompute_blocks_
from edm2.training.run.disk import DiskForecast, file_sizes

TRAINING_FLOPS = 3
"""Training FLOPs over those of an evaluation: the backward pass adds the gradients of activations and of weights."""

FLOAT32 = 4
"""Bytes of a number. Weights, gradients, Adam's moments and averages are float32 whatever the activations are."""

ALLOWANCE = {"cuda": (0.1, 0.6e9), "mps": (0.1, 0.6e9), "cpu": (0.5, 0.4e9)}
"""Memory of libraries and the allocator beside the tensors, by kind of device: a fraction of the tensors' bytes, and
bytes on top."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process on its device, by purpose. Field names are keys of the JSON of `edm2 plan`."""

    weights: int
    """Weights; under FSDP2, this process's rows of them."""
    adam: int
    """Adam's two moments: twice the weights."""
    averages: int
    """Averaged weights: as many times the weights as there are EMA lengths."""
    gradients: int
    """Gradients of the weights."""
    activations: int
    """Peak of the other tensors of a step: activations kept for the backward pass, and intermediate results. At least
    the copy of an average from which a snapshot is written, which comes after a step."""
    borrowed: int
    """Under FSDP2, whole weights and gradients of the blocks at work."""
    spare: int
    """Allowance for libraries, workspaces of convolutions and gaps between tensors."""

    @property
    def persistent(self) -> int:
        """Bytes between steps. A checkpoint first copies them to the CPU, so it takes as much memory there."""
        return self.weights + self.adam + self.averages

    @property
    def step(self) -> int:
        """Bytes that a step adds at its peak."""
        return self.gradients + self.activations + self.borrowed

    @property
    def total(self) -> int:
        return self.persistent + self.step + self.spare


@lru_cache
def count_parameters(network: NetworkConfig) -> int:
    """Count trainable numbers, those of u(sigma) included."""
    return sum(p.numel() for p in _without_data(network).parameters())


@dataclass(frozen=True)
class ParameterBytes:
    """Bytes of float32 parameters, or of as many gradients."""

    blocks: tuple[int, ...]
    """Bytes of each block of the network, without scalars."""
    rest: int
    """Bytes outside of the blocks, without scalars."""
    scalars: int
    """Bytes of the gains, which every process has."""

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.rest + self.scalars


@lru_cache
def parameter_bytes(network: NetworkConfig, ranks: int = 1) -> ParameterBytes:
    """Count the bytes that each of `ranks` processes holds if they divide parameters by rows; last rows are padded."""

    def held(module: nn.Module) -> int:
        tensors = [p for p in module.parameters() if p.ndim]
        return FLOAT32 * sum(-(-len(p) // ranks) * p[0].numel() for p in tensors)  # rows per rank, rounded up

    net = _without_data(network)
    of_blocks = tuple(map(held, blocks(net)))
    scalars = FLOAT32 * sum(not p.ndim for p in net.parameters())
    return ParameterBytes(of_blocks, held(net) - sum(of_blocks), scalars)


def evaluations_per_image(config: TrainingConfig) -> int:
    """Evaluations of the network that have the FLOPs of training on an image.

    A distillation also evaluates its teacher, the guide (taken to be of the same size), and the derivative: one
    evaluation for a difference, three in forward mode.
    """
    distillation = config.distillation
    if distillation is None:
        return TRAINING_FLOPS
    return TRAINING_FLOPS + 1 + (distillation.guidance != 1) + (1 if distillation.derivative == "difference" else 3)


@lru_cache
def count_flops(network: NetworkConfig) -> int:
    """Count the FLOPs of one evaluation of one image, in the paper's unit: a multiply-accumulate is one.

    Convolutions, linear layers and attention count; elementwise operations are left out and would add 1 to 2 %.
    """
    net = _without_data(network).eval()
    net.compute_dtype = torch.float32
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(_images(network, 1), torch.empty(1, device="meta"), conditions=_conditions(network, 1))
    return counter.get_total_flops() // 2  # torch counts multiplications and additions


def disk_forecast(config: TrainingConfig) -> DiskForecast:
    """Forecast the files of a run."""
    return DiskForecast(config, file_sizes(config, _without_data(config.network)))


def estimate_memory(config: TrainingConfig, processes: int = 1) -> MemoryEstimate:
    """Estimate the memory of each process, from the tensors that live during a step on the meta device.

    Attention there keeps its matrix for the backward pass, which fused kernels do not, so networks with much attention
    are estimated a few per cent too high.
    """
    images_per_rank = config.images_per_rank(processes)
    images = min(config.images_per_forward, images_per_rank)
    accumulates = images < images_per_rank
    sharded = config.shard and processes > 1
    whole = parameter_bytes(config.network)
    own = parameter_bytes(config.network, processes if sharded else 1).total
    gradients_stay = processes > 1 or accumulates  # DDP's buckets, or gradients of earlier rounds
    peak = _peak_of_a_step(config.network, DTYPES[config.precision], images, gradients_stay, config.recompute)
    tensors = {
        "weights": own,
        "adam": 2 * own,
        "averages": config.num_averages * own,
        "gradients": _gradients(config, processes, accumulates),
        "activations": max(peak - whole.total, own),  # the peak includes one set of whole gradients
        # Outside of blocks, and two blocks with weights and gradients: one at work while the other's travel.
        "borrowed": whole.rest + 2 * 2 * max(whole.blocks) if sharded else 0,
    }
    fraction, constant = ALLOWANCE[torch.device(config.device).type]
    return MemoryEstimate(**tensors, spare=int(fraction * sum(tensors.values()) + constant))


def _gradients(config: TrainingConfig, processes: int, accumulates: bool) -> int:
    """Bytes of gradients.

    FSDP2 keeps those of its rows, and whole ones while they add up over rounds. DDP exchanges gradients in buckets that
    are always there; those of earlier rounds add up beside them.
    """
    whole = parameter_bytes(config.network).total
    if processes == 1:
        return whole
    if config.shard:
        return whole if accumulates else parameter_bytes(config.network, processes).total
    return 2 * whole if accumulates else whole


def largest_micro_batch(config: TrainingConfig, memory: float, processes: int = 1) -> int | None:
    """Largest number of images per forward pass, up to `config`'s, that fits into `memory` bytes; None: not even one.

    Memory is close to a straight line in the number of images, which spares trying every number.
    """

    def needed(images: int) -> int:
        return estimate_memory(replace(config, micro_batch=images), processes).total

    images_per_rank = config.images_per_rank(processes)
    most = min(config.images_per_forward, images_per_rank)
    if needed(most) <= memory:
        return most
    per_image = (needed(most) - needed(1)) / max(most - 1, 1)
    for images in range(most - 1, 0, -1):
        on_the_line = needed(1) + per_image * (images - 1)
        if images_per_rank % images == 0 and on_the_line <= memory and needed(images) <= memory:
            return images
    return None


def device_memory(device: str) -> int | None:
    """Bytes of memory of a device; None where the system does not tell."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not on Windows
        return None


class LiveTensors(TorchDispatchMode):
    """Context that adds up the memory of tensors made inside it, while they are alive.

    Views of older tensors count as no memory.

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
        """Count a storage until the last of its tensors is gone; a storage that several tensors use counts once."""
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
    """Peak bytes alive beside the weights during the forward and backward pass of one round, gradients included."""
    net = _without_data(network, recompute).train()
    net.compute_dtype = dtype
    with LiveTensors() as live:
        if gradients_stay:  # of earlier rounds, or DDP's buckets
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
        EDM2Loss()(net, _images(network, images), conditions=_conditions(network, images)).sum().backward()
    net.zero_grad(set_to_none=True)
    return live.peak


@lru_cache(maxsize=4)
def _without_data(network: NetworkConfig, recompute: bool = False) -> Precond:
    """Network on the meta device. Callers share it and leave it as it was; building a large one takes half a second."""
    with torch.device("meta"):
        net = build_network(network)
    if recompute:
        recompute_blocks_(net)
    return net


def _images(network: NetworkConfig, count: int) -> Tensor:
    return torch.empty(count, network.img_channels, *network.size, device="meta")


def _conditions(network: NetworkConfig, count: int) -> dict[str, Tensor]:
    return {condition.name: condition.absent(count, "meta") for condition in network.conditions}
