"""Retrying reads from storage that fails for a while, as a network file system does when its server restarts.

A read that fails by one of `TRANSIENT` is repeated after 1, 2, 4, 8, 16 and 32 seconds: seven attempts in about a
minute. Any other error is final at once.
"""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

PAUSES = (1, 2, 4, 8, 16, 32)
"""Seconds between attempts."""

TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EREMOTEIO", "ENOTCONN", "ECONNRESET", "ECONNABORTED"),
        *("ECONNREFUSED", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
    )
    if hasattr(errno, name)  # not every system has all of them
)
"""Numbers of errors that may be gone a moment later."""

log = logging.getLogger(__name__)


def is_transient(error: BaseException) -> bool:
    """True if this is an error of the storage that may be gone a moment later."""
    return isinstance(error, OSError) and error.errno in TRANSIENT


def retry(read: Callable[[], Result], what: str) -> Result:
    """Return what `read` returns, at the first attempt or a later one; the log says once that attempts are repeated.

    Args:
        read: Called up to seven times, in this thread.

    Raises:
        OSError: Transient, at every attempt; the message says how many attempts were made, in how many seconds.
        Exception: Anything else that `read` raises, at once.
    """
    start = time.monotonic()
    for pause in (*PAUSES, None):
        try:
            return read()
        except OSError as error:
            if not is_transient(error):
                raise
            if pause is None:
                seconds = time.monotonic() - start
                error.strerror = f"{error.strerror}, at each of {len(PAUSES) + 1} attempts in {seconds:.0f} seconds"
                raise
            if pause == PAUSES[0]:
                log.warning("%s: %s; trying again for %d seconds", what, error.strerror, sum(PAUSES))
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
