"""Files that are named by a URL, here for as long as they are needed."""

import http.client
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

SCHEMES = ("http", "https", "file")
CHUNK = 1 << 20
TIMEOUT = 60
"""Seconds without an answer after which to give up."""

Report = Callable[[int, int | None], None]
"""Told how many bytes are there and, where the server says it, how many there are in all."""


class DownloadError(OSError):
    """A file cannot be had; the message is one line that names the URL and the remedy."""


def is_url(source: str) -> bool:
    """Whether this names something to fetch, and not a local path."""
    scheme, separator, _ = source.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


@contextmanager
def downloaded(url: str, folder: Path, report: Report = lambda done, total: None) -> Iterator[Path]:
    """The file that the URL names, under its own name, in a hidden folder inside `folder`; gone afterwards.

    Raises:
        DownloadError: there is no such file, no connection, no space, or the connection broke off.
    """
    name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if name in ("", "..") or not name.isprintable():
        raise DownloadError(f"{url}: names no file; give the whole URL of one")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", suffix=".tmp", dir=folder) as temporary:
        path = Path(temporary) / name
        try:
            with path.open("wb") as file, urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                _copy(answer, file, report)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DownloadError(
                f"{url}: cannot be downloaded ({_reason(error)}); try again, or download it otherwise and give its path"
            ) from None
        yield path


def _copy(answer: http.client.HTTPResponse, file: BinaryIO, report: Report) -> None:
    total = int(answer.headers.get("Content-Length", 0)) or None
    done = 0
    while chunk := answer.read(CHUNK):
        file.write(chunk)
        done += len(chunk)
        report(done, total)
    if done < (total or 0):
        raise ConnectionError(f"broke off after {done:,} of {total:,} bytes")


def _reason(error: Exception) -> str:
    """In one line; the operating system's words where it is the cause."""
    cause = error.reason if isinstance(error, urllib.error.URLError) and not hasattr(error, "code") else error
    words = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(words.split())
