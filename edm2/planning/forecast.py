"""What training on a cluster would be, on paper: memory, communication, speed, time, and what data must deliver."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from edm2.planning.communication import Traffic, traffic
from edm2.planning.costs import MemoryEstimate, estimate_memory, largest_micro_batch
from edm2.planning.hardware import Cluster
from edm2.training import ArrayDataset, Dataset, TrainingConfig

RECOMPUTING = 4 / 3
"""Time of a step that evaluates blocks twice, in that of one that does not: four evaluations instead of three."""

BACKWARD = 2 / 3
"""Share of the backward pass in a step's time, likewise."""


@dataclass(frozen=True)
class Speed:
    """How long a step takes."""

    computing: float
    """Seconds."""
    waiting: float
    """Seconds for what others send, beyond what can happen while a process computes."""
    batch: int
    """Images."""

    @property
    def images_per_second(self) -> float:
        """Of all GPUs together."""
        return self.batch / (self.computing + self.waiting)


@dataclass(frozen=True)
class Variant:
    """One way to train: copies or shares, with or without recomputation."""

    config: TrainingConfig
    cluster: Cluster
    largest: int | None
    """The largest micro-batch that fits; None: not even one image."""

    @property
    def images(self) -> int:
        """Per forward pass."""
        return min(self.config.images_per_forward, self.config.share(self.cluster.gpus))

    @property
    def rounds(self) -> int:
        """Forward passes of a GPU per step."""
        return self.config.share(self.cluster.gpus) // self.images

    @property
    def fits(self) -> bool:
        """Whether memory suffices."""
        return self.memory.total <= 1e9 * self.cluster.gpu.memory

    @cached_property
    def memory(self) -> MemoryEstimate:
        """Of each GPU."""
        return estimate_memory(self.config, self.cluster.gpus)

    @property
    def checkpoint_copies(self) -> int:
        """Bytes of the CPU memory of a node while a checkpoint is written."""
        return self.cluster.per_node * self.memory.kept

    @property
    def traffic(self) -> Traffic:
        """Of each GPU in a step."""
        return traffic(self.config.network, self.cluster.gpus, self.config.shard, self.rounds)

    @property
    def communicating(self) -> float:
        """Seconds that a step's messages take."""
        return self.traffic.total / self.cluster.bandwidth

    def speed(self, seconds_per_image: float) -> Speed:
        """How long a step takes, if a GPU computes an image in so many seconds without recomputation.

        Copies exchange gradients during the last backward pass; shares travel all the time.
        """
        share = self.config.share(self.cluster.gpus)
        computing = share * seconds_per_image * (RECOMPUTING if self.config.recompute else 1)
        meanwhile = computing if self.config.shard else BACKWARD * computing / self.rounds
        return Speed(computing, max(self.communicating - meanwhile, 0), self.config.batch_size)


@dataclass(frozen=True)
class Forecast:
    """All of it."""

    config: TrainingConfig
    dataset: Dataset
    cluster: Cluster
    variants: list[Variant]
    paces: dict[str, float]
    """Seconds per image of one GPU without recomputation, by where the number comes from."""

    def days(self, speed: Speed) -> float:
        """How long the run takes."""
        return self.config.duration / speed.images_per_second / 86_400

    def gpu_hours(self, speed: Speed) -> float:
        """All GPUs together."""
        return 24 * self.days(speed) * self.cluster.gpus

    @property
    def fastest(self) -> Speed:
        """Of the variants that fit, or of all, at the best pace."""
        candidates = [variant for variant in self.variants if variant.fits] or self.variants
        speeds = [variant.speed(pace) for variant in candidates for pace in self.paces.values()]
        return max(speeds, key=lambda speed: speed.images_per_second)


def variants(config: TrainingConfig, cluster: Cluster, micro_batch: int | None) -> list[Variant]:
    """All ways to train; shares only with several GPUs.

    Args:
        config: The run; its own way and micro-batch do not matter.
        cluster: Where.
        micro_batch: Images per forward pass; None: in each way the largest number that fits, or one if none does.

    Raises:
        ValueError: the GPUs cannot share a step, or not in micro-batches of this size.
    """
    found = []
    for shard in (False, True) if cluster.gpus > 1 else (False,):
        for recompute in (False, True):
            way = replace(config, shard=shard, recompute=recompute, micro_batch=micro_batch)
            way.share(cluster.gpus)  # refuses what does not divide, before anything is counted
            free = replace(way, micro_batch=None)
            largest = largest_micro_batch(free, 1e9 * cluster.gpu.memory, cluster.gpus)
            found.append(Variant(way if micro_batch else replace(way, micro_batch=largest or 1), cluster, largest))
    return found


def imaginary_dataset(shape: tuple[int, int, int], classes: int, images: int) -> Dataset:
    """Data of which only the size is known, without memory. Four channels or more are taken for latents.

    Args:
        shape: (channels, height, width) of what the network sees.
        classes: How many; 0 for data without labels.
        images: How many.
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
