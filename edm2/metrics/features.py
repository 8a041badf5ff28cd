"""Features of many images, batch by batch, computed by all processes of a job and seen by each in the same order.

Sums of floating-point numbers depend on their order. So batches are fixed (64 images, whatever the number of
processes), process r computes those of number r, r + count, ..., and every process gets the features of all batches
one after the other: statistics are the same to the bit as those of one process.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, distributed

from edm2.metrics.detectors import Detector
from edm2.training import Dataset, PixelCodec
from edm2.training.distributed.processes import ONE_PROCESS, Processes

BATCH = 64
"""Images whose features are computed together."""

READERS = 4
"""Threads that read and decode images: a PNG of 512x512 pixels takes 10 ms."""

Report = Callable[[int], object]
"""Called with a number of images that are done."""


def features_of(
    dataset: Dataset,
    detectors: Sequence[Detector],
    processes: Processes = ONE_PROCESS,
    report: Report = lambda n: None,
) -> Iterator[list[Tensor]]:
    """Features of all images of a dataset, in order.

    Yields:
        Per batch one float32 [N, D] for each detector, on the CPU.

    Raises:
        ValueError: the data are not pixels.
    """
    parts = parts_of(len(dataset))
    images = read_ahead(dataset, processes.share(parts))
    return features_of_batches(images, len(parts), detectors, processes, report)


def features_of_batches(
    batches: Iterable[Tensor],
    count: int,
    detectors: Sequence[Detector],
    processes: Processes = ONE_PROCESS,
    report: Report = lambda n: None,
) -> Iterator[list[Tensor]]:
    """Features of images, uint8 [N, C, H, W].

    Args:
        batches: Those of this process: of `count` batches every `processes.count`-th, beginning with number
            `processes.rank`.
        count: Batches of all processes together.
        detectors: What computes features.
        processes: Who else computes.
        report: Progress.

    Yields:
        As `features_of`.
    """
    mine = ([detector(images).cpu() for detector in detectors] for images in batches)
    for features in _in_turn(mine, count, len(detectors), processes):
        report(len(features[0]))
        yield features


def parts_of(count: int) -> list[range]:
    """Indices of `count` images, `BATCH` at a time."""
    return [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]


def read_ahead(dataset: Dataset, parts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Images as of `displayed`, part by part, in order; the next ones are read while detectors work."""
    with ThreadPoolExecutor(READERS) as pool:
        coming: deque[Future[Tensor]] = deque()
        for part in parts:
            coming.append(pool.submit(displayed, dataset, part))
            if len(coming) > READERS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def displayed(dataset: Dataset, indices: Sequence[int]) -> Tensor:
    """Images of a dataset as image files show them: uint8 [N, C, H, W] in 0..255.

    Raises:
        ValueError: the data are not pixels.
    """
    if dataset.kind != "pixels":
        raise ValueError(f"{dataset.name}: holds {dataset.kind}, not pixels; give the images that they were made of")
    return PixelCodec(levels=dataset.levels).to_display(dataset.images(indices))


def _in_turn(mine: Iterator[list[Tensor]], count: int, width: int, processes: Processes) -> Iterator[list[Tensor]]:
    """Every process's lists of `width` tensors, as if one process had computed all `count` of them."""
    for first in range(0, count, processes.count):
        own = next(mine) if first + processes.rank < count else None
        for source in range(min(processes.count, count - first)):
            yield _handed_round(own if source == processes.rank else None, source, width, processes)


def _handed_round(tensors: list[Tensor] | None, source: int, width: int, processes: Processes) -> list[Tensor]:
    """What process `source` has; the others give None."""
    if processes.count == 1:
        return tensors
    try:
        return [_broadcast(None if tensors is None else tensors[i], source) for i in range(width)]
    except RuntimeError as error:  # which speaks of sockets
        raise RuntimeError("another process of this job has failed; what it said tells why") from error


def _broadcast(features: Tensor | None, source: int) -> Tensor:
    shape = torch.tensor((0, 0) if features is None else features.shape)
    distributed.broadcast(shape, source)
    received = torch.empty(*shape.tolist()) if features is None else features.contiguous()
    distributed.broadcast(received, source)
    return received
