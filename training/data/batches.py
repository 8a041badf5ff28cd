"""From a dataset to what the network sees: codec, mirroring and label dropout, in the order of places."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edm2.training.config import TrainingConfig
from edm2.training.data.codecs import Codec, PixelCodec
from edm2.training.data.dataset import Dataset, DatasetError, Subset, pixel_statistics, split_holdout
from edm2.training.data.loader import data_loader
from edm2.training.data.order import PositionBatches, ShuffledOrder
from edm2.training.data.vae import latent_codec_of
from edm2.training.distributed.processes import ONE_PROCESS, Processes
from edm2.training.randomness import PositionRandom, Stream

Microbatch = tuple[Tensor, "Tensor | None"]
"""Images as the network sees them, [N, C, H, W] float32, and their classes, int64 [N] (-1: none)."""


class BatchStream:
    """Feeds a run.

    Args:
        config: The run.
        dataset: Its images; some are set aside if `config.holdout` says so.
        random: Random numbers by place, on the device where the images shall be.
        processes: Among which the places of every step are shared; this one feeds its own.

    Attributes:
        dataset: All images.
        train_set: Those to train on.
        holdout_set: Those set aside, or None.
        codec: Stored pixels <-> what the network sees.

    Raises:
        DatasetError: the images do not fit the network.
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
        self.train_set, self.holdout_set = split_holdout(dataset, config.holdout, config.seed)
        self.codec = self._choose_codec()
        seen = (self.codec.network_channels(dataset.shape[0]), *dataset.shape[1:])
        expected = (config.network.img_channels, *config.network.size)
        if seen != expected:
            raise DatasetError(f"{config.data}: images are {seen}, but the network is for {expected}")

    def _choose_codec(self) -> Codec:
        """Latents, or pixels to mean 0 and standard deviation sigma_data, or pixels onto [-1, 1]."""
        sigma_data = self.config.network.sigma_data
        if self.dataset.kind == "moments":
            if self.config.xflip:
                raise DatasetError(f"{self.config.data}: latents cannot be mirrored; encode mirrored images too")
            try:
                return latent_codec_of(self.dataset.latents, self.dataset.shape[0], sigma_data)
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
            raise DatasetError(f"{self.config.data}: {error}; train with --no-standardize") from None

    def _pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation per channel: those stored with the dataset, else measured."""
        stored = self.dataset.pixel_stats
        return (stored["mean"], stored["std"]) if stored else pixel_statistics(self.train_set)

    def steps(self, start: int) -> Iterator[list[Microbatch]]:
        """This process's micro-batches of each step, without end; `start` is the place where the first step begins."""
        config, rank, count = self.config, self.processes.rank, self.processes.count
        share = config.share(count)
        size = min(config.images_per_forward, share)
        order = ShuffledOrder(len(self.train_set), config.seed)
        places = PositionBatches(order, start, config.batch_size, micro_batch=size, rank=rank, world_size=count)
        pin_memory = self.device.type == "cuda"
        loader = data_loader(self.train_set, places, config.workers, pin_memory)
        for first in itertools.count(start + rank * share, config.batch_size):
            starts = range(first, first + share, size)
            yield [self._augment(*self._encode(*next(loader), place), place) for place in starts]

    def indices(self, places: Sequence[int]) -> list[int]:
        """Which images of the dataset stand at some places of the run."""
        order, dataset = ShuffledOrder(len(self.train_set), self.config.seed), self.train_set
        found = [int(order.indices(place, place + 1)[0]) for place in places]
        return dataset.indices[found].tolist() if isinstance(dataset, Subset) else found

    def all_of(self, dataset: Dataset) -> Microbatch:
        """All images of a small dataset, without augmentation; of latents, the means."""
        everything = range(len(dataset))
        return self._encode(dataset.images(everything), dataset.labels(everything))

    def _encode(self, data: Tensor, labels: Tensor, place: int | None = None) -> Microbatch:
        """Onto the device, and through the codec; latents are drawn anew at every place."""
        noise = None
        if place is not None and self.dataset.kind == "moments":
            shape = (self.config.network.img_channels, *data.shape[2:])
            noise = self.random.normal(Stream.MOMENTS, place, place + len(data), shape)
        images = self.codec.encode(data.to(self.device, non_blocking=True), noise)
        return images, labels.to(self.device, non_blocking=True) if self.config.network.label_dim else None

    def _augment(self, images: Tensor, labels: Tensor | None, place: int) -> Microbatch:
        """Mirror images and drop labels, as these places of the run have it."""
        stop = place + len(images)
        if self.config.xflip:
            flip = self.random.uniform(Stream.XFLIP, place, stop) < 0.5
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        if self.config.label_dropout and labels is not None:
            drop = self.random.uniform(Stream.LABEL_DROPOUT, place, stop) < self.config.label_dropout
            labels = torch.where(drop, -1, labels)
        return images, labels
