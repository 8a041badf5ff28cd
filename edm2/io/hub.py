"""Repositories of the Hugging Face hub, as folders."""

import re
from typing import Any

WANTED = ("*.json", "*.safetensors")
"""What is fetched of a repository: nothing that could be executed."""


def is_hub_id(name: str) -> bool:
    """Whether this could be the name of a repository: "user/name", and no file's."""
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
        return snapshot_download(hub_id, allow_patterns=list(WANTED), **options)
    except Exception as error:  # the hub has many ways to fail
        raise OSError(
            f"{hub_id}: no such file or folder, and nothing of this name can be fetched from the hub "
            f"({type(error).__name__}); give a file, a folder that EDM2Pipeline.save_pretrained wrote, or go online"
        ) from error
