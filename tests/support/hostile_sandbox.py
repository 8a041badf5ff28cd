"""Sandbox for hostile files: a folder that is compared before and after, and limits of time and memory."""

import contextlib
import faulthandler
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60
"""Seconds that one use of a file may take; the slowest take one, but machines can be busy."""

HEADROOM = 3 << 30
"""Bytes of address space beyond what the libraries and the intact files have taken."""

LONGEST = 3000
"""Characters of a line."""


class Surprise(Exception):
    """A file did what no file may do."""


class TooLong(BaseException):
    """Raised by the clock; no `except Exception` catches it."""


@dataclass(frozen=True)
class Attempt:
    """A user's use of a file."""

    words: str
    """The command as it would be typed."""
    do: Callable[[], object]
    named: tuple[str, ...] = ()
    """Names of which an error must contain one: the file, or its folder or archive."""


class Sandbox:
    """Folders: `base` (intact files), `in` (hostile ones), `out` (where results may go), `home`, and `here`.

    Args:
        root: An empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base, self.given, self.out, self.here = (root / name for name in ("base", "in", "out", "here"))
        for folder in (self.base, self.given, self.out, self.here, root / "home", root / "tmp"):
            folder.mkdir()
        for variable in ("HOME", "XDG_CACHE_HOME"):
            os.environ[variable] = str(root / "home")
        os.environ["TMPDIR"] = tempfile.tempdir = str(root / "tmp")
        os.chdir(self.here)
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGALRM, _ring)

    def limit_memory(self) -> None:
        """Limit the memory from here on to `HEADROOM` more, on systems that report it."""
        if not Path("/proc/self/statm").exists():
            return
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM,) * 2)

    def try_out(self, attempt: Attempt) -> str:
        """Do it; "done" or "refused".

        Raises:
            Surprise: anything else than success or one clear line, or a file that is not in `out`.
        """
        before = self._everything()
        shown, printed = io.StringIO(), io.StringIO()
        try:
            with _time_limit(), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(printed):
                outcome = _outcome(attempt)
        except TooLong:
            raise Surprise(f"took more than {SECONDS} seconds") from None
        if "Traceback" in printed.getvalue():
            raise Surprise(f"printed a traceback:\n{printed.getvalue()}")
        if (text := shown.getvalue()) != "".join(c for c in text if c.isprintable() or c in "\n\t\r"):
            raise Surprise(f"shows what a terminal would obey: {text[:LONGEST]!r}")
        if changed := before ^ self._everything():
            raise Surprise(f"changed files outside of the output folder: {sorted(path for path, *_ in changed)[:5]}")
        return outcome

    def clear(self) -> None:
        """Make ready for the next file."""
        for folder in (self.given, self.out):
            shutil.rmtree(folder)
            folder.mkdir()

    def _everything(self) -> set[tuple[str, int, int]]:
        """Path, size and time of every file but results."""
        found = set()
        for folder, _, names in os.walk(self.root):
            if not Path(folder).is_relative_to(self.out):
                stats = [(os.path.join(folder, name), os.lstat(os.path.join(folder, name))) for name in names]
                found |= {(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats}
        return found


def _ring(signal_number: int, frame: object) -> None:
    raise TooLong


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """If a library written in C does not even hear the clock, the process ends, with a word about where it was."""
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def _outcome(attempt: Attempt) -> str:
    """Outcome of an attempt; raises Surprise unless it succeeds or fails with one line."""
    try:
        line = attempt.do()
    except (ValueError, OSError) as error:
        line = f"Error: {error}"
    except Exception:
        raise Surprise(f"a traceback:\n{traceback.format_exc()}") from None
    if not isinstance(line, str):
        return "done"
    if len(line.splitlines()) != 1 or not line.isprintable() or len(line) > LONGEST:
        raise Surprise(f"not one line that can be read: {line[:LONGEST]!r}")
    if "allocate" in line or "MemoryError" in line:
        raise Surprise(f"memory: {line}")
    if not any(name in line for name in attempt.named):
        raise Surprise(f"does not name any of {attempt.named}: {line}")
    return "refused"
