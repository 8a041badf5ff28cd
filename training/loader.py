"""From dataset indices to batches of tensors, read ahead by worker processes."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from edm2.training.data import Dataset, DatasetError


def data_loader(
    dataset: Dataset, batches: Iterable[list[int]], workers: int = 0, pin_memory: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of each list of indices, in order.

    Args:
        dataset: Where to read from.
        batches: Dataset indices of each batch, such as `PlaceBatches`; may be endless.
        workers: Processes that read ahead, each with one thread; 0 reads here, right when a batch is asked for.
        pin_memory: Return page-locked tensors, which copy to a GPU in the background. No effect without one.

    Returns:
        Iterator of (images [N, C, H, W], labels int64 [N]), with as many items as `batches`. The workers live as
        long as the iterator.

    Raises:
        DatasetError: At the batch with an unusable file, in this process, whoever read it.
    """
    pin_memory = pin_memory and torch.cuda.is_available()
    return _read_ahead(dataset, batches, workers, pin_memory) if workers else _read_here(dataset, batches, pin_memory)


def _read_here(dataset: Dataset, batches: Iterable[list[int]], pin_memory: bool) -> Iterator[tuple[Tensor, Tensor]]:
    for indices in batches:
        images, labels = dataset.images(indices), dataset.labels(indices)
        yield (images.pin_memory(), labels.pin_memory()) if pin_memory else (images, labels)


def _read_ahead(
    dataset: Dataset, batches: Iterable[list[int]], workers: int, pin_memory: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        _WholeBatches(dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else starting workers would draw from, and so disturb, the global generator
    )
    for batch in loader:
        if isinstance(batch, DatasetError):
            raise batch
        images, labels = batch
        yield images, labels


class _WholeBatches:
    """A dataset as DataLoader's workers use it: one call per batch.

    An error is returned as a value: raised in a worker, torch would bury its one line in the text of a traceback.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor] | DatasetError:
        try:
            return self.dataset.images(indices), self.dataset.labels(indices)
        except DatasetError as error:
            return error


def _as_it_is(batch: tuple[Tensor, Tensor] | DatasetError) -> tuple[Tensor, Tensor] | DatasetError:
    return batch
