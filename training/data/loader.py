"""From dataset indices to batches of tensors, read ahead by worker processes."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils.signal_handling import _error_if_any_worker_fails

from edm2.training.data.dataset import Dataset, DatasetError, LabelledImages
from edm2.training.data.files import StorageError, one_line

TIMEOUT = 900
"""Seconds without a batch after which to give up: far more than all attempts to read one file take."""

Tell = Callable[[Iterable[str]], None]
"""Hears what is wrong with images in whose place others stand."""


class WorkerError(RuntimeError):
    """A process that reads data has died; the message is one line with the remedy."""


def data_loader(
    dataset: Dataset,
    batches: Iterable[list[int]],
    workers: int = 0,
    pin_memory: bool = False,
    on_broken: Tell = lambda lines: None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of each list of indices, in order.

    Args:
        dataset: Where to read from.
        batches: Dataset indices of each batch, such as `PositionBatches`; may be endless.
        workers: Processes that read ahead, each with one thread; 0 reads here, right when a batch is asked for.
        pin_memory: Return page-locked tensors, which copy to a GPU in the background. No effect without one.
        on_broken: Called in this process, before the batch is returned, with what is wrong with images of it in whose
            place others stand (see `edm2.training.data.tolerance`). What it raises arrives here.

    Returns:
        Iterator of (images [N, C, H, W], labels int64 [N]), with as many items as `batches`. The workers live as
        long as the iterator.

    Raises:
        DatasetError: At the batch with an unusable file, in this process, whoever read it.
        StorageError: The storage gives no answer: a file fails at every attempt, or no batch comes for `TIMEOUT`.
        WorkerError: A worker has died, at the next batch that is asked for: out of memory, or killed.
    """
    pin_memory = pin_memory and torch.cuda.is_available()
    read = _read_ahead(dataset, batches, workers, pin_memory) if workers else _read_here(dataset, batches, pin_memory)
    for images, labels, broken in read:
        if broken:
            on_broken(broken)
        yield images, labels


def _read_here(dataset: Dataset, batches: Iterable[list[int]], pin_memory: bool) -> Iterator[LabelledImages]:
    for indices in batches:
        images, labels, broken = dataset.batch(indices)
        yield (
            LabelledImages(images.pin_memory(), labels.pin_memory(), broken)
            if pin_memory
            else LabelledImages(images, labels, broken)
        )


def _read_ahead(
    dataset: Dataset, batches: Iterable[list[int]], workers: int, pin_memory: bool
) -> Iterator[LabelledImages]:
    asked: deque[list[int]] = deque()
    loader = DataLoader(
        _WholeBatches(dataset),
        batch_sampler=_noted(batches, asked),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        timeout=TIMEOUT,
        worker_init_fn=_leave_signals_to_the_trainer,
        generator=torch.Generator(),  # else starting workers would draw from, and so disturb, the global generator
    )
    with _when_a_child_ends(signal.SIG_DFL):  # torch would raise wherever this process is, perhaps writing a checkpoint
        ready = iter(loader)
    while (batch := _next(ready)) is not None:
        if isinstance(batch, Exception):
            del ready  # now, not when the error is forgotten: its workers end
            raise batch if isinstance(batch, DatasetError) else _explained(batch, dataset, asked[0])
        asked.popleft()
        yield batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    """What stops a job reaches all of its processes at once, but a step must be finished, and it needs its images."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_if_the_trainer_says_so, daemon=True).start()


def _end_if_the_trainer_says_so() -> None:
    """SIGTERM from the process that started this one ends it, from others it does not."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # the main thread may wait for a lock that another worker died with


def _noted(batches: Iterable[list[int]], asked: deque[list[int]]) -> Iterator[list[int]]:
    """The same batches, each put down in `asked` when it is taken."""
    for indices in batches:
        asked.append(indices)
        yield indices


def _next(ready: Iterator[LabelledImages | DatasetError]) -> LabelledImages | Exception | None:
    """The next batch, or None after the last, or what came in its place: a worker may have died, or die meanwhile."""
    try:
        with _when_a_child_ends(lambda signal_number, frame: _error_if_any_worker_fails()):
            _error_if_any_worker_fails()
            return next(ready, None)
    except (RuntimeError, OSError, EOFError) as error:
        return error


@contextmanager
def _when_a_child_ends(handler: Any) -> Iterator[None]:
    """Call `handler` for processes that end as long as the block lasts, if this is where it can be: the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _explained(error: Exception, dataset: Dataset, indices: list[int]) -> Exception:
    """What torch's words about its workers mean to whoever trains; other errors as they are."""
    words = one_line(error)
    if "timed out" in words:
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        return StorageError(
            f"{dataset.name}: no answer for {TIMEOUT} seconds while images of indices {shown} were read; "
            "look after the storage, then run the same again to go on from the last checkpoint"
        )
    if isinstance(error, RuntimeError) and not words.startswith("DataLoader worker"):
        return error  # a mistake in a dataset's program, told by torch with its traceback
    reason = one_line(error.__cause__) if isinstance(error.__cause__, RuntimeError) else words
    return WorkerError(
        f"{dataset.name}: a process that reads data has died ({reason.rstrip('. ')}); if memory has run out, lower "
        "--workers; run the same again to go on from the last checkpoint"
    )


class _WholeBatches:
    """A dataset as DataLoader's workers use it: one call per batch.

    An error is returned as a value: raised in a worker, torch would bury its one line in the text of a traceback.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: list[int]) -> LabelledImages | DatasetError:
        try:
            return self.dataset.batch(indices)
        except DatasetError as error:
            return error


def _as_it_is(batch: LabelledImages | DatasetError) -> LabelledImages | DatasetError:
    return batch
