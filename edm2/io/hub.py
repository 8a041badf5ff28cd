"""Files from elsewhere: repositories of the Hugging Face hub, and files by their URL."""

import re
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

from edm2.post_hoc_ema import SnapshotError

ALLOWED = ("*.json", "*.safetensors")
"""Files that are fetched of a repository: nothing that could be executed."""

SCHEMES = ("http", "https", "file")


def is_hub_id(name: str) -> bool:
    """True if this could be the name of a repository, "user/name", and is not that of a file."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None and not name.endswith((".safetensors", ".pkl"))


def fetch(hub_id: str, **options: Any) -> str:
    """Fetch a repository, or find it in the cache.

    Args:
        hub_id: Such as "user/name".
        options: cache_dir, force_download, local_files_only, token and revision, as of huggingface_hub.

    Returns:
        The folder.

    Raises:
        OSError: there is none, or no connection.
    """
    from huggingface_hub import snapshot_download  # here, because few need it

    try:
        return snapshot_download(hub_id, allow_patterns=list(ALLOWED), **options)
    except Exception as error:  # the hub has many ways to fail
        raise OSError(
            f"{hub_id}: no such file or folder, and no repository of this name can be fetched from the hub "
            f"({type(error).__name__}); give a file, a folder that EDM2Pipeline.save_pretrained wrote, or go online"
        ) from error


def is_url(source: str) -> bool:
    """True if this is a URL, not a local path."""
    scheme, separator, _ = source.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


@contextmanager
def downloaded(url: str, folder: Path) -> Iterator[Path]:
    """Download a file under its own name into a hidden folder in `folder`, removed afterwards; with a progress bar."""
    from torch.hub import download_url_to_file  # here, because torch takes a second to import

    name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if name in ("", "..") or not name.isprintable():
        raise OSError(f"{url}: names no file; give the whole URL of one")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", suffix=".tmp", dir=folder) as temporary:
        path = Path(temporary) / name
        try:
            download_url_to_file(url, str(path), progress=sys.stderr.isatty())
        except (OSError, ValueError, HTTPException) as error:
            raise OSError(
                f"{url}: cannot be downloaded ({' '.join(str(error).split())}); try again, or download it otherwise "
                "and give its path"
            ) from None
        try:
            yield path
        except SnapshotError as error:  # of a connection that broke off, too: torch.hub does not notice
            raise SnapshotError(str(error).replace(str(path), url)) from None
