"""Settings of the whole process. Only the command line makes them; library calls have no such side effect."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_INT, LARGEST_MMAP_THRESHOLD = (1 << 31) - 1, 32 << 20


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
