"""Pipelines to and from folders and the hub: complete, without pickles, and with a model card."""

import os
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

        The file that makes a folder a pipeline is removed first, if there is one, and written last.

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
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle; leave it out to write .safetensors")
        for name, component in self.components.items():
            if isinstance(component, torch.nn.Module) and is_folded(component):
                raise ValueError(f"{name}: a folded network cannot be saved; save the one it was folded from")
        folder = Path(save_directory)
        repo_id = repo_id or folder.name
        if folder.is_file():
            raise FileExistsError(f"{folder}: a file is here already; give the name of a folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        card = folder / "README.md"
        card.write_text(self.card(repo_id), encoding="utf-8")
        super().save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        for path in folder.rglob("*.safetensors"):
            path.chmod(card.stat().st_mode)  # safetensors lets only the owner read them
        if push_to_hub:
            upload(folder, repo_id, **hub_options)

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
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant, repo_id=repo_id)
            return upload(Path(folder), repo_id, commit_message, private, token, create_pr)


def upload(
    folder: Path,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload as diffusers does, which would replace our card by an empty one; return the address of the commit."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=commit_message or "Upload EDM2Pipeline",
        create_pr=create_pr,
        ignore_patterns=["README.md"] if api.file_exists(repo_id, "README.md") else None,
    )
