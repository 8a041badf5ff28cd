"""Settings of the whole process. Only the command line makes them; library calls have no such side effect."""

import ctypes
import io
import logging
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_INT, LARGEST_MMAP_THRESHOLD = (1 << 31) - 1, 32 << 20

LOAD = Path("/proc/loadavg")
"""Where Linux counts the threads that run."""


def keep_freed_memory() -> bool:
    """Ask the C library to give freed memory to the next tensor, not back to the system. True if it will.

    A network frees and asks for the same tensors in every step. By default tensors of some megabytes come fresh from
    the system each time, page by page, and a page costs more than computing what is on it. The process then stays as
    large as it ever was. Linux with glibc only; elsewhere nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {M_TRIM_THRESHOLD: LARGEST_INT, M_MMAP_THRESHOLD: LARGEST_MMAP_THRESHOLD}
    return all([libc.mallopt(name, value) == 1 for name, value in settings.items()])


def sleep_while_waiting() -> bool:
    """On a busy machine, let OpenMP's threads sleep while they wait for each other. True if they will.

    An operation ends when its last thread does. By default the others spin meanwhile, for milliseconds where another
    program holds a processor: small networks then take many times the time of a single thread (docs/performance.md).
    On an idle machine spinning is the faster way. OpenMP reads this once, when torch is loaded; what the user has set
    stays. Linux only.
    """
    if os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} or others_running() <= (os.cpu_count() or 1) / 4:
        return False
    os.environ["OMP_WAIT_POLICY"] = "passive"
    return True


def others_running() -> int:
    """Threads of other programs that have a processor or wait for one: the smallest of three counts; 0 if unknown."""
    counts = []
    with suppress(OSError):
        for _ in range(3):  # one that is there all the time, no daemon that looks around
            counts.append(int(LOAD.read_text().split()[3].partition("/")[0]) - 1)  # "0.20 0.18 0.12 2/80 11206"
            time.sleep(0.003)
    return min(counts, default=0)


@contextmanager
def stop_signals_handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` with the number of every stop signal that this process receives within the context.

    SIGHUP stays ignored under nohup.
    """
    process = os.getpid()
    ignored = signal.SIG_IGN

    def on_signal(number: int, frame: object) -> None:
        if os.getpid() == process:  # a forked process that reads data ignores them
            handle(number)

    handled = [number for number in STOP_SIGNALS if number == signal.SIGINT or signal.getsignal(number) != ignored]
    before = {number: signal.signal(number, on_signal) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Droppable(io.RawIOBase):
    """Standard output or error that drops what cannot be written: a closed pipe or a full disk must not end a run."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.told = False

    def write(self, data: Any) -> int:
        try:
            return os.write(self.descriptor, data)
        except OSError as error:
            if not self.told and not isinstance(error, BrokenPipeError):
                self.told = True
                with suppress(OSError):
                    os.write(2, f"Output is lost from here on: {error.strerror}\n".encode())
            return memoryview(data).nbytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)


def print_whatever_happens() -> None:
    """Let nothing that is printed end the process: neither characters that the terminal lacks, nor a closed pipe."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, or without a console on Windows
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, for the life of the process
            continue
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):  # in memory
            continue
        raw = io.BufferedWriter(_Droppable(descriptor))
        safe = io.TextIOWrapper(raw, stream.encoding, errors="replace", line_buffering=name == "stderr" or raw.isatty())
        setattr(sys, name, safe)


def quiet_libraries() -> None:
    """Silence warnings of torch about what is intended, and of Pillow, whose errors are told in one line of ours."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(
        logging.ERROR
    )  # no torchvision, which nothing here needs
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for message in (
        "torch.distributed is disabled",  # in a job of one process
        "FSDP2-wrapped module .* returned a view",  # u(sigma), which nothing alters in place
        "`isinstance\\(treespec, LeafSpec\\)`",  # torch about its own torch.export
    ):
        warnings.filterwarnings("ignore", message=message)


def convolve_in_float32() -> None:
    """Let convolutions in float32 be that on CUDA; torch rounds them to TF32 by default."""
    import torch  # takes seconds

    torch.backends.cudnn.allow_tf32 = False
