"""Batches of a run: read, encoded, mirrored, some labels and conditions dropped, in the order of positions."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edm2.networks import ImageCondition, TokenCondition
from edm2.networks.conditions import constant, noise_level, noise_levels
from edm2.training.config import TrainingConfig
from edm2.training.data.codecs import Codec, PixelCodec, ValueCodec, codec_from_json
from edm2.training.data.conditions import padded, with_conditions
from edm2.training.data.dataset import (
    Dataset,
    DatasetError,
    Loaded,
    Subset,
    evenly_spaced_indices,
    pixel_statistics,
    split_holdout,
    value_statistics,
)
from edm2.training.data.loader import data_loader
from edm2.training.data.order import PositionBatches, ShuffledOrder
from edm2.training.data.own_codec import own_codec
from edm2.training.data.transfer import Transfer
from edm2.training.data.vae import latent_codec_of
from edm2.training.distributed.processes import ONE_PROCESS, Processes
from edm2.training.randomness import PositionRandom, Stream


class Batch(NamedTuple):
    """Images as the network sees them, with what it is conditioned on."""

    images: Tensor
    """[N, C, H, W] float32."""
    labels: Tensor | None = None
    """Classes, int64 [N] (-1: none)."""
    conditions: Mapping[str, Tensor] | None = None
    """Further conditions by name, each [N, ...]."""

    @property
    def given(self) -> dict[str, Any]:
        """Keyword arguments of a network or loss: the conditions, if there are any."""
        return {} if self.conditions is None else {"conditions": self.conditions}

    @classmethod
    def joined(cls, parts: Sequence["Batch"]) -> "Batch":
        """Images of several batches of the same kind, in turn."""
        images, labels, conditions = zip(*parts, strict=True)
        names = conditions[0] or ()
        return cls(
            torch.cat(images),
            None if labels[0] is None else torch.cat(labels),
            None if conditions[0] is None else {name: torch.cat([part[name] for part in conditions]) for name in names},
        )

    def slice(self, start: int, stop: int) -> "Batch":
        """Images `start` to `stop`, with their labels and conditions."""
        part = slice(start, stop)
        conditions = self.conditions
        return Batch(
            self.images[part],
            None if self.labels is None else self.labels[part],
            None if conditions is None else {name: values[part] for name, values in conditions.items()},
        )


def seen_shape(dataset: Dataset, codec: Codec) -> tuple[int, ...]:
    """(C, H, W) of what the network sees of an image."""
    return tuple(codec.encode(dataset.images([0])).shape[1:])


class BatchStream:
    """Batches of a run.

    Args:
        dataset: Images; `config.holdout` of them are set aside.
        random: Random numbers by position, on the device where the images shall be.
        processes: Processes that divide the positions of every step; this one gets its own.

    Attributes:
        dataset: All images.
        train_set: Images to train on.
        holdout_set: Images set aside, or None.
        codec: Stored data <-> what the network sees.
        shape: (C, H, W) of what it sees.
    """

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Dataset,
        random: PositionRandom,
        processes: Processes = ONE_PROCESS,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.random = random
        self.processes = processes
        self.device = random.generator.device
        self.transfer = Transfer(self.device)
        self.conditions = () if config.network is None else config.network.conditions
        self._read = [c for c in self.conditions if c.name not in noise_levels(self.conditions)]
        dataset = with_conditions(dataset, self.conditions, config.make_conditions)
        self.train_set, self.holdout_set = split_holdout(dataset, config.holdout, config.seed)
        self.codec = self._choose_codec()
        self.shape = seen = seen_shape(dataset, self.codec)
        network = config.network
        expected = seen if network is None else (network.img_channels, *network.size)
        self.has_labels = bool(dataset.class_names if network is None else network.label_dim)
        if seen != expected:
            raise DatasetError(f"{config.data}: images are {seen}, but the network is for {expected}")

    def _choose_codec(self) -> Codec:
        """Codec for latents, values, pixels of standard deviation sigma_data, or pixels in [-1, 1]."""
        sigma_data, own = self.config.sigma_data, self.config.codec
        if self.config.distillation is not None and self.config.distillation.codec is not None:
            return codec_from_json(self.config.distillation.codec)
        if own is not None and self.config.xflip:
            raise DatasetError(f"{self.config.data}: what {own} makes of images cannot be mirrored: leave out --xflip")
        if own is not None:
            return own_codec(own)
        if self.dataset.kind == "moments":
            if self.config.xflip:
                raise DatasetError(f"{self.config.data}: latents cannot be mirrored; encode mirrored images too")
            try:
                return latent_codec_of(self.dataset.latents, self.dataset.shape[0], sigma_data)
            except ValueError as error:
                raise DatasetError(f"{self.config.data}: {error}") from None
        if self.dataset.kind == "values":
            try:
                return ValueCodec.standardized(*value_statistics(self.train_set), sigma_data)
            except ValueError as error:
                raise DatasetError(f"{self.config.data}: {error}") from None
        levels = self.dataset.levels
        if not self.config.standardize:
            half = (levels - 1) / 2
            return PixelCodec((half,), (half,), levels)
        statistics = self._pixel_statistics()
        try:
            return PixelCodec.standardized(*statistics, levels, sigma_data)
        except ValueError as error:
            remedy = "train with --no-standardize"
            if self.dataset.shape[0] in (2, 4) and statistics[1][-1] == 0:
                remedy = "the last channel (alpha) says that nothing is transparent, and edm2 dataset convert drops it"
            raise DatasetError(f"{self.config.data}: {error}; {remedy}") from None

    def _pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation per channel, in levels: as stored with the dataset, else measured."""
        stored = self.dataset.pixel_stats
        return (stored["mean"], stored["std"]) if stored else pixel_statistics(self.train_set)

    def steps(self, start: int) -> Iterator[list[Batch]]:
        """Yield this process's micro-batches of each step, without end, from the position `start` on."""
        config, rank, count = self.config, self.processes.rank, self.processes.count
        images_per_rank = config.images_per_rank(count)
        size = min(config.images_per_forward, images_per_rank)
        order = ShuffledOrder(len(self.train_set), config.seed)
        positions = PositionBatches(order, start, config.batch_size, micro_batch=size, rank=rank, world_size=count)
        pin_memory = self.device.type == "cuda"
        loader = data_loader(self.train_set, positions, config.workers, pin_memory)
        for first in itertools.count(start + rank * images_per_rank, config.batch_size):
            starts = range(first, first + images_per_rank, size)
            yield [self._augment(self._encode(next(loader), position), position) for position in starts]

    def indices(self, positions: Sequence[int]) -> list[int]:
        """Dataset indices of the images at some positions of the run."""
        order, dataset = ShuffledOrder(len(self.train_set), self.config.seed), self.train_set
        found = [int(order.indices(position, position + 1)[0]) for position in positions]
        return dataset.indices[found].tolist() if isinstance(dataset, Subset) else found

    def all_of(self, dataset: Dataset) -> Batch:
        """Encode all images of a small dataset, without augmentation; of latents, the means.

        A codec may be a large network, and gets no more images at once than in a step.
        """
        count = len(dataset)
        size = min(self.config.images_per_forward, self.config.images_per_rank(self.processes.count))
        return Batch.joined([self._encode(dataset.read(range(count)[i : i + size])) for i in range(0, count, size)])

    def shown(self, count: int) -> Batch:
        """At most `count` images, the same every time, whose conditions sample grids show: held-out ones if any are."""
        images = self.holdout_set or self.train_set
        return self.all_of(Subset(images, evenly_spaced_indices(len(images), count)))

    def _encode(self, loaded: Loaded, position: int | None = None) -> Batch:
        """Move data to the device and images through the codec; latents are drawn anew at every position."""
        data, labels, conditions = loaded
        noise = None
        if position is not None and self.dataset.kind == "moments":
            noise = self.random.normal(Stream.MOMENTS, position, position + len(data), self.shape)
        images = self.codec.encode(self.transfer(data), noise)
        if conditions is not None:
            conditions = {name: self.transfer(values) for name, values in conditions.items()}
            for c in self._read:
                if isinstance(c, TokenCondition):
                    conditions[c.name] = padded(conditions[c.name], c.length)
        return Batch(images, self.transfer(labels) if self.has_labels else None, conditions)

    def _augment(self, batch: Batch, position: int) -> Batch:
        """Mirror images, drop labels and conditions, and add noise to these, by random numbers of their positions."""
        images, labels, conditions = batch
        stop = position + len(images)
        given = dict(conditions or {})
        if self.config.xflip:
            flip = self.random.uniform(Stream.XFLIP, position, stop)[:, None, None, None] < 0.5
            images = torch.where(flip, images.flip(-1), images)
            for c in self._read:
                if isinstance(c, ImageCondition):
                    given[c.name] = torch.where(flip, given[c.name].flip(-1), given[c.name])
        self._disturb(given, position, stop)
        if self.config.label_dropout and labels is not None:
            drop = self.random.uniform(Stream.LABEL_DROPOUT, position, stop) < self.config.label_dropout
            labels = torch.where(drop, -1, labels)
        return Batch(images, labels, None if conditions is None else given)

    def _disturb(self, conditions: dict[str, Tensor], position: int, stop: int) -> None:
        """Add noise to image conditions that are trained with it, then drop conditions: NaN says that one is absent."""
        for c in self._read:
            values = conditions[c.name]
            if isinstance(c, ImageCondition) and c.noise:
                level = c.noise * self.random.uniform(f"noise level of {c.name}", position, stop)
                unit = self.random.normal(f"noise of {c.name}", position, stop, tuple(values.shape[1:]))
                std = constant(c.std or (1.0,), values.device, torch.float32).view(-1, 1, 1)
                values = values.float() + level.view(-1, 1, 1, 1) * std * unit
                conditions[noise_level(c).name] = level
            if c.dropout:
                drop = self.random.uniform(f"dropping {c.name}", position, stop) < c.dropout
                values = values.float().masked_fill(drop.view(-1, *[1] * (values.ndim - 1)), torch.nan)
            conditions[c.name] = values
