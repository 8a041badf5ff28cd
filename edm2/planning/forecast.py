"""Forecast of training on a cluster: memory, communication, speed and time of the four ways to train.

Collective operations pass data around a ring of n processes. A process sends (n - 1) / n of the result of a gather, or
of the input of a reduction; averaging everywhere (all-reduce) is a reduction and a gather. Whatever else processes
exchange is a few numbers per step.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from edm2.networks import NetworkConfig
from edm2.planning.cluster import Cluster
from edm2.planning.costs import MemoryEstimate, estimate_memory, largest_micro_batch, parameter_bytes
from edm2.training import ArrayDataset, Dataset, TrainingConfig

RECOMPUTING = 4 / 3
"""Time of a step with recomputation over that without: blocks are evaluated twice, so four evaluations, not three."""

BACKWARD = 2 / 3
"""Fraction of a step's time that its backward pass takes: two of three evaluations."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process sends in a step."""

    all_reduce: int = 0
    """Bytes to average gradients everywhere: all of them under DDP, those of scalars under FSDP2."""
    all_gather: int = 0
    """Bytes to gather the weights of every block before its forward and its backward pass, in every round."""
    reduce_scatter: int = 0
    """Bytes to average gradients under FSDP2, each on the process that holds its row."""

    @property
    def total(self) -> int:
        """Sum of the three."""
        return self.all_reduce + self.all_gather + self.reduce_scatter


def traffic(network: NetworkConfig, processes: int, shard: bool, rounds: int) -> Traffic:
    """Count the bytes of a step. Weights and gradients travel in float32, see `edm2.training.distributed.strategies`.

    Args:
        processes: Number n of processes in the ring.
        shard: True if they divide the weights among them (FSDP2).
        rounds: Forward passes of a process per step. Gradients are exchanged after the last one only.
    """
    if processes == 1:
        return Traffic()
    others = processes - 1
    if not shard:
        return Traffic(all_reduce=2 * others * parameter_bytes(network).total // processes)
    own = parameter_bytes(network, processes)  # a shard is 1/n of the whole: (n - 1) shards are (n - 1)/n of it
    gathered = 2 * sum(own.blocks) + own.rest  # weights outside of blocks stay from forward to backward pass
    return Traffic(
        all_reduce=2 * others * own.scalars // processes,
        all_gather=rounds * others * gathered,
        reduce_scatter=others * (sum(own.blocks) + own.rest),
    )


@dataclass(frozen=True)
class Speed:
    """Speed of a run; field names are keys of the JSON of `edm2 plan`."""

    seconds_computing: float
    """Seconds of a step."""
    seconds_waiting: float
    """Seconds for messages of a step, beyond those that travel while a process computes."""
    images_per_second: float
    days: float
    gpu_hours: float


@dataclass(frozen=True)
class TrainingVariant:
    """One way to train: with DDP or FSDP2 (`config.shard`), with or without recomputation."""

    config: TrainingConfig
    cluster: Cluster
    largest: int | None
    """The largest micro-batch that fits; None: not even one image."""

    @property
    def images(self) -> int:
        """Images per forward pass of a GPU."""
        return min(self.config.images_per_forward, self.config.images_per_rank(self.cluster.gpus))

    @property
    def rounds(self) -> int:
        """Forward passes of a GPU per step."""
        return self.config.images_per_rank(self.cluster.gpus) // self.images

    @property
    def fits(self) -> bool:
        """True if the memory of a GPU suffices."""
        return self.memory.total <= 1e9 * self.cluster.gpu.memory

    @cached_property
    def memory(self) -> MemoryEstimate:
        return estimate_memory(self.config, self.cluster.gpus)

    @property
    def checkpoint_copies(self) -> int:
        """Bytes of a node's CPU memory while a checkpoint is written: each process copies its persistent tensors."""
        return self.cluster.per_node * self.memory.persistent

    @property
    def traffic(self) -> Traffic:
        """Bytes that each GPU sends in a step."""
        return traffic(self.config.own_network, self.cluster.gpus, self.config.shard, self.rounds)

    @property
    def communicating(self) -> float:
        """Seconds that a step's messages take."""
        return self.traffic.total / self.cluster.bandwidth

    def speed(self, seconds_per_image: float) -> Speed:
        """Speed of a step, if a GPU takes this time for an image without recomputation.

        DDP exchanges gradients during the backward pass of the last round; FSDP2 exchanges weights all the time.
        """
        images_per_rank = self.config.images_per_rank(self.cluster.gpus)
        computing = images_per_rank * seconds_per_image * (RECOMPUTING if self.config.recompute else 1)
        overlap = computing if self.config.shard else BACKWARD * computing / self.rounds
        waiting = max(self.communicating - overlap, 0)
        images_per_second = self.config.batch_size / (computing + waiting)
        days = self.config.duration / images_per_second / 86_400
        return Speed(computing, waiting, images_per_second, days, gpu_hours=24 * days * self.cluster.gpus)


@dataclass(frozen=True)
class Forecast:
    """A run on a cluster, in every way to train it."""

    config: TrainingConfig
    dataset: Dataset
    cluster: Cluster
    variants: list[TrainingVariant]
    seconds_per_image: dict[str, float]
    """Seconds of one GPU without recomputation, by the source of the number (see `edm2.planning.speed`)."""

    @property
    def fastest(self) -> Speed:
        """Highest speed of the variants that fit (of all, if none does), by any source."""
        candidates = [variant for variant in self.variants if variant.fits] or self.variants
        speeds = [variant.speed(seconds) for variant in candidates for seconds in self.seconds_per_image.values()]
        return max(speeds, key=lambda speed: speed.images_per_second)


def variants(config: TrainingConfig, cluster: Cluster, micro_batch: int | None) -> list[TrainingVariant]:
    """Every way to train; FSDP2 only with several GPUs.

    Args:
        config: The run; its own `shard`, `recompute` and `micro_batch` are replaced.
        cluster: Machines to train on.
        micro_batch: Images per forward pass; None: in each way the largest number that fits, or one if none does.

    Raises:
        ValueError: the batch cannot be split evenly over the GPUs, or not in micro-batches of this size.
    """
    found = []
    for shard in (False, True) if cluster.gpus > 1 else (False,):
        for recompute in (False, True):
            way = replace(config, shard=shard, recompute=recompute, micro_batch=micro_batch)
            way.images_per_rank(cluster.gpus)  # refuses a batch that does not divide, before anything is counted
            free = replace(way, micro_batch=None)
            largest = largest_micro_batch(free, 1e9 * cluster.gpu.memory, cluster.gpus)
            chosen = way if micro_batch else replace(way, micro_batch=largest or 1)
            found.append(TrainingVariant(chosen, cluster, largest))
    return found


def imaginary_dataset(shape: tuple[int, int, int], classes: int, images: int) -> Dataset:
    """Dataset of which only the size is known; takes no memory. Four channels or more are taken for latents.

    Args:
        shape: (channels, height, width) of the network's input.
        classes: Number of classes; 0 for data without labels.
    """
    channels, height, width = shape
    latents = channels > 3
    stored = (2 * channels if latents else channels, height, width)  # mean and standard deviation of latents
    one = torch.zeros((), dtype=torch.float32 if latents else torch.uint8)
    labels = torch.arange(images) % classes if classes else None
    return ArrayDataset(one.expand(images, *stored), labels, name="imaginary")


def stored_bytes(dataset: Dataset) -> int:
    """Bytes of an image as it is read: float32 moments of latents, or pixels before compression."""
    return math.prod(dataset.shape) * (4 if dataset.kind == "moments" else 1)
