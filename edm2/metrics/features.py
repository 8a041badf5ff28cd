"""Features of many images, batch by batch, computed by all processes of a job and handed to each in the same order.

Sums of floating-point numbers depend on their order. So batches are fixed (64 images, whatever the number of
processes), process r computes those of number r, r + count, ..., and every process gets the features of all batches
one after the other: statistics are the same to the bit as those of one process.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, distributed

from edm2.datasets.parts import ahead
from edm2.metrics.detectors import Detector
from edm2.training import Dataset, PixelCodec
from edm2.training.distributed.processes import ONE_PROCESS, Processes

BATCH = 64
"""Images whose features are computed together."""

READERS = 4
"""Threads that read and decode images: a PNG of 512x512 pixels takes 10 ms."""

ReportProgress = Callable[[int], object]
"""Function that is called with a number of finished images."""


def features_of(
    dataset: Dataset,
    detectors: Sequence[Detector],
    processes: Processes = ONE_PROCESS,
    report: ReportProgress = lambda n: None,
) -> Iterator[list[Tensor]]:
    """Compute the features of all images of a dataset, in order.

    Yields:
        Per batch one float32 [N, D] for each detector, on the CPU.

    Raises:
        ValueError: the data are not pixels.
    """
    parts = parts_of(len(dataset))
    images = read_ahead(dataset, processes.shard(parts))
    return features_of_batches(images, len(parts), detectors, processes, report)


def features_of_batches(
    batches: Iterable[Tensor],
    count: int,
    detectors: Sequence[Detector],
    processes: Processes = ONE_PROCESS,
    report: ReportProgress = lambda n: None,
) -> Iterator[list[Tensor]]:
    """Compute the features of images, uint8 [N, C, H, W].

    Args:
        batches: Batches of this process: of `count` batches every `processes.count`-th, beginning with number
            `processes.rank`.
        count: Batches of all processes together.
        detectors: Functions that compute features.
        processes: Processes that share the work.
        report: Called with a number of finished images.

    Yields:
        As `features_of`.
    """
    mine = ([detector(images).cpu() for detector in detectors] for images in batches)
    for features in _in_turn(mine, count, len(detectors), processes):
        report(len(features[0]))
        yield features


def parts_of(count: int) -> list[range]:
    """Split the indices of `count` images into batches of `BATCH`."""
    return [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]


def read_ahead(dataset: Dataset, parts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Yield images as `displayed` returns them, part by part; the next parts are read while detectors compute."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from ahead(pool, (partial(displayed, dataset, part) for part in parts), READERS)


def displayed(dataset: Dataset, indices: Sequence[int]) -> Tensor:
    """Read images of a dataset as image files show them: uint8 [N, C, H, W] in 0..255."""
    if dataset.kind != "pixels":
        raise ValueError(f"{dataset.name}: holds {dataset.kind}, not pixels; give the images that they were made of")
    return PixelCodec(levels=dataset.levels).to_display(dataset.images(indices))


def _in_turn(
    mine: Iterator[list[Tensor]], count: int, num_tensors: int, processes: Processes
) -> Iterator[list[Tensor]]:
    """Yield every process's lists of `num_tensors` tensors, as if one process had computed all `count` of them."""
    for first in range(0, count, processes.count):
        own = next(mine) if first + processes.rank < count else None
        for source in range(min(processes.count, count - first)):
            yield _from_process(source, own if source == processes.rank else None, num_tensors, processes)


def _from_process(source: int, tensors: list[Tensor] | None, num_tensors: int, processes: Processes) -> list[Tensor]:
    """Tensors of process `source`, on all processes; the others give None."""
    if processes.count == 1:
        assert tensors is not None  # it is the source
        return tensors
    try:
        return [_broadcast(None if tensors is None else tensors[i], source) for i in range(num_tensors)]
    except RuntimeError as error:  # torch's message is about sockets
        raise RuntimeError("another process of this job has failed; its own message says why") from error


def _broadcast(features: Tensor | None, source: int) -> Tensor:
    shape = torch.tensor((0, 0) if features is None else features.shape)
    distributed.broadcast(shape, source)
    received = torch.empty(*shape.tolist()) if features is None else features.contiguous()
    distributed.broadcast(received, source)
    return received
