"""Patience with storage that fails for a while, as a network file system does when its server starts anew.

What fails by one of `PASSING` is tried again after 1, 2, 4, 8, 16 and 32 seconds: seven attempts in about a minute. Any
other trouble is final at once, for trying again would change nothing.
"""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

PAUSES = (1, 2, 4, 8, 16, 32)
"""Seconds between attempts."""

SLOW = 30
"""Seconds after which an answer is late enough to be told of."""

PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EREMOTEIO", "ENOTCONN", "ECONNRESET", "ECONNABORTED"),
        *("ECONNREFUSED", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
    )
    if hasattr(errno, name)  # not every system has all of them
)
"""Errors that may be gone a moment later."""

log = logging.getLogger(__name__)


def is_passing(error: BaseException) -> bool:
    """Whether it is trouble of the storage that may be gone a moment later."""
    return isinstance(error, OSError) and error.errno in PASSING


def retry(read: Callable[[], Answer], what: str) -> Answer:
    """What `read` returns, at the first attempt or a later one. May be used in any thread and process.

    Tells in the log, once, that attempts are repeated, and that an answer came late.

    Args:
        read: Called up to seven times.
        what: The file, for the log.

    Raises:
        OSError: of `PASSING`, at every attempt; the message says how often and how long it was tried.
        Exception: whatever else `read` raises.
    """
    start = time.monotonic()
    for pause in (*PAUSES, None):
        try:
            return _timed(read, what)
        except OSError as error:
            if not is_passing(error):
                raise
            if pause is None:
                seconds = time.monotonic() - start
                error.strerror = f"{error.strerror}, at each of {len(PAUSES) + 1} attempts in {seconds:.0f} seconds"
                raise
            if pause == PAUSES[0]:
                log.warning("%s: %s; trying again for %d seconds", what, error.strerror, sum(PAUSES))
        time.sleep(pause)


def _timed(read: Callable[[], Answer], what: str) -> Answer:
    start = time.monotonic()
    answer = read()
    if (seconds := time.monotonic() - start) > SLOW:
        log.warning("%s: the answer took %.0f seconds", what, seconds)
    return answer
