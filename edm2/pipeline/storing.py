"""Pipelines to and from folders and the hub: complete, without pickles, and with a model card."""

import os
import shutil
from abc import abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available
from huggingface_hub import HfApi

from edm2.io.hub import fetch
from edm2.networks import is_folded
from edm2.pipeline.folder import INDEX, read_pipeline_metadata


class StoredPipeline(DiffusionPipeline):
    """Loading and saving of `EDM2Pipeline`."""

    @abstractmethod
    def card(self, name: str) -> str:
        """Text of README.md, for a pipeline that is loaded by this name."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "StoredPipeline":
        """Load a folder that `save_pretrained` wrote, or a repository; only .safetensors, and no code in it runs.

        Raises:
            OSError: neither a folder nor on the hub, or files are missing.
            ValueError: damaged, or not an EDM2Pipeline.
        """
        if os.path.isdir(pretrained_model_name_or_path):
            read_pipeline_metadata(pretrained_model_name_or_path)  # says in one line what is wrong with the folder
        options.setdefault("low_cpu_mem_usage", is_accelerate_available())
        options["use_safetensors"] = True  # the alternative is a pickle
        return super().from_pretrained(str(pretrained_model_name_or_path), **options)

    @classmethod
    def download(cls, pretrained_model_name: str, **options: Any) -> str:
        """Fetch a pipeline from the hub; return its folder.

        Raises:
            OSError: there is none, or no connection.
        """
        known = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        options = {key: options[key] for key in known if options.get(key) is not None}
        return fetch(pretrained_model_name, **options)

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub_options: Any,
    ) -> None:
        """Write a folder that `from_pretrained` and `edm2.load` read, with a model card.

        A new folder appears when it is complete. In an existing one files are replaced; the file that makes it a
        pipeline is removed first and written last.

        Args:
            save_directory: The folder.
            safe_serialization: Must be True.
            variant: Part of the names of the weights, as in diffusers.
            max_shard_size: Largest file of weights, as in diffusers.
            push_to_hub: Also upload what was written.
            repo_id: Repository; default: the folder's name.
            hub_options: See `push_to_hub`.

        Raises:
            ValueError: a network is folded, or pickles are asked for.
            OSError: the folder cannot be written.
        """
        self._check_saveable(safe_serialization)
        folder = Path(save_directory)
        repo_id = repo_id or folder.name
        if folder.is_file():
            raise FileExistsError(f"{folder}: a file is here already; give the name of a folder")
        if folder.is_dir() and any(folder.iterdir()):
            (folder / INDEX).unlink(missing_ok=True)
            self._write(folder, repo_id, variant, max_shard_size)
        else:
            self._write_new(folder, repo_id, variant, max_shard_size)
        if push_to_hub:
            self._upload(folder, repo_id, **hub_options)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> str:
        """Upload the pipeline with its model card; a card that the repository already has stays.

        Args:
            repo_id: Such as "name/edm2-photos"; made if it does not exist.
            commit_message: Default: "Upload EDM2Pipeline".
            private: Make a new repository private.
            token: Default: the token of `hf auth login`.
            create_pr: Propose the files in a pull request.
            safe_serialization: Must be True.
            variant: See `save_pretrained`.

        Returns:
            The address of the commit.
        """
        self._check_saveable(safe_serialization)
        with TemporaryDirectory() as folder:
            self._write(Path(folder), repo_id, variant, None)
            return self._upload(Path(folder), repo_id, commit_message, private, token, create_pr)

    def _check_saveable(self, safe_serialization: bool) -> None:
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle; leave it out to write .safetensors")
        for name, component in self.components.items():
            if isinstance(component, torch.nn.Module) and is_folded(component):
                raise ValueError(f"{name}: a folded network cannot be saved; save the one it was folded from")

    def _write_new(self, folder: Path, *options: Any) -> None:
        """Write a new folder under another name, and rename it when it is complete."""
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        temporary.mkdir(parents=True)
        try:
            self._write(temporary, *options)
            temporary.replace(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _write(self, folder: Path, name: str, variant: str | None, max_shard_size: int | str | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(self.card(name), encoding="utf-8")
        super().save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        _settle(folder)

    @staticmethod
    def _upload(
        folder: Path,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload as diffusers does, which would replace our card by an empty one."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload EDM2Pipeline",
            create_pr=create_pr,
            ignore_patterns=["README.md"] if api.file_exists(repo_id, "README.md") else None,
        )


def _settle(folder: Path) -> None:
    """Give all files the same permissions (safetensors would let only the owner read them), and fsync them."""
    mode = (folder / "README.md").stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
