"""Batches of tensors from dataset indices, read ahead by worker processes."""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader

from edm2.post_hoc_ema.files import first_line
from edm2.training.data.archive.files import StorageError
from edm2.training.data.dataset import Dataset, DatasetError, Loaded

TIMEOUT = 900
"""Seconds to wait for a batch: far more than all attempts to read one file take."""


class WorkerError(RuntimeError):
    """A process that reads data has died; the message is one line with the remedy."""


def data_loader(
    dataset: Dataset, batches: Iterable[list[int]], workers: int = 0, pin_memory: bool = False
) -> Iterator[Loaded]:
    """Iterate over the images, labels and conditions of each list of indices, in order.

    Args:
        batches: Dataset indices of each batch, such as `PositionBatches`; may be endless.
        workers: Processes that read ahead, each with one thread; 0 reads here, right when a batch is asked for.
        pin_memory: Return page-locked tensors, which copy to a GPU in the background. No effect without one.

    Returns:
        Iterator of (images [N, C, H, W], labels int64 [N], conditions by name or None), with as many items as
        `batches`. The workers live as long as the iterator.

    Raises:
        DatasetError: At the batch with an unusable file, in this process, whoever read it.
        StorageError: The storage gives no answer: a file fails at every attempt, or no batch comes for `TIMEOUT`.
        WorkerError: A worker has died: out of memory, or killed. While this process does something else, torch raises
            its own RuntimeError there, which `deaths_of_workers` translates.
    """
    pin_memory = pin_memory and torch.cuda.is_available()
    if workers:
        yield from _read_ahead(dataset, batches, workers, pin_memory)
        return
    for indices in batches:
        loaded = dataset.read(indices)
        yield _pinned(loaded) if pin_memory else loaded


def _pinned(loaded: Loaded) -> Loaded:
    images, labels, conditions = loaded
    if conditions is not None:
        conditions = {name: values.pin_memory() for name, values in conditions.items()}
    return images.pin_memory(), labels.pin_memory(), conditions


def _read_ahead(dataset: Dataset, batches: Iterable[list[int]], workers: int, pin_memory: bool) -> Iterator[Loaded]:
    pending: deque[list[int]] = deque()
    loader: DataLoader[Any] = DataLoader(
        _WholeBatches(dataset),  # type: ignore[arg-type]  # a map of lists of indices to batches
        batch_sampler=_recorded(batches, pending),
        num_workers=workers,
        collate_fn=_unchanged,  # type: ignore[arg-type]
        pin_memory=pin_memory,
        timeout=TIMEOUT,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else starting workers would draw from, and so disturb, the global generator
    )
    with deaths_of_workers(dataset.name):
        try:
            for batch in loader:
                if isinstance(batch, DatasetError):
                    raise batch
                pending.popleft()
                yield batch
        except RuntimeError as error:
            if "timed out" not in first_line(error):
                raise
            shown = ", ".join(map(str, pending[0][:8])) + (", ..." if len(pending[0]) > 8 else "")
            raise StorageError(
                f"{dataset.name}: no answer for {TIMEOUT} seconds while images of indices {shown} were read; "
                "look after the storage, then run the same command again to go on from the last checkpoint"
            ) from error
        except (OSError, EOFError) as error:  # the connection to a worker breaks when it dies
            time.sleep(1)  # until torch hears of it too, and reports why
            raise _death(dataset.name, first_line(error)) from error


@contextmanager
def deaths_of_workers(name: str) -> Iterator[None]:
    """Say in plain words that a process that reads the dataset `name` has died, wherever torch reports it.

    Torch hears of it by a signal, whose handler raises a RuntimeError at whatever line this process has come to: while
    it trains, in the middle of a step.
    """
    try:
        yield
    except RuntimeError as error:
        if not first_line(error).startswith("DataLoader worker"):
            raise  # a mistake in a program, with its traceback
        raise _death(name, first_line(error)) from error


def _death(name: str, reason: str) -> WorkerError:
    return WorkerError(
        f"{name}: a process that reads data has died ({reason.rstrip('. ')}); if memory has run out, lower --workers; "
        "run the same command again to go on from the last checkpoint"
    )


def _start_worker(worker: int) -> None:
    """Ignore what stops a job: it reaches all processes at once, but the step under way needs its images."""
    sys.excepthook = _report_but_lost_connections
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_at_the_trainers_signal, daemon=True).start()


def _report_but_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print errors as usual, but not that the trainer has ended while this worker was handing it a batch."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end_at_the_trainers_signal() -> None:
    """End this worker at a SIGTERM from the process that started it; one from others changes nothing."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # the main thread may wait for a lock that another worker died with


def _recorded(batches: Iterable[list[int]], pending: deque[list[int]]) -> Iterator[list[int]]:
    """Yield the same batches, appending each to `pending` when it is taken."""
    for indices in batches:
        pending.append(indices)
        yield indices


class _WholeBatches:
    """A dataset as DataLoader's workers use it: one call per batch.

    An error is returned as a value: raised in a worker, torch would bury its one line in the text of a traceback.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: list[int]) -> Loaded | DatasetError:
        try:
            return self.dataset.read(indices)
        except DatasetError as error:
            return error


def _unchanged(batch: Loaded | DatasetError) -> Loaded | DatasetError:
    return batch
