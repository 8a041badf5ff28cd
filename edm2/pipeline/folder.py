"""Folders that `EDM2Pipeline.save_pretrained` wrote, read without diffusers: JSON and .safetensors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from edm2.post_hoc_ema import SnapshotError
from edm2.post_hoc_ema.files import parse_json
from edm2.post_hoc_ema.snapshot import check_buffers

INDEX = "model_index.json"
"""File that makes a folder a pipeline; written last."""

PIPELINE_CLASS = "EDM2Pipeline"

WEIGHTS = "diffusion_pytorch_model.safetensors"


def is_pipeline_folder(path: str | Path) -> bool:
    """True if `path` is a folder with a pipeline of diffusers, of this or another kind."""
    return (Path(path) / INDEX).is_file()


def read_pipeline_metadata(folder: str | Path) -> dict[str, Any]:
    """Read the metadata of the pipeline's network, as a snapshot has it: network, codec, images seen, EMA length."""
    folder = Path(folder)
    index = read_json(folder / INDEX)
    if index.get("_class_name") != PIPELINE_CLASS:
        raise SnapshotError(f"{folder}: a {index.get('_class_name')} of diffusers, not an {PIPELINE_CLASS}")
    network = read_json(folder / "unet" / "config.json")
    fields = {key: value for key, value in network.items() if not key.startswith("_")}
    metadata = index.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise SnapshotError(f"{folder / INDEX}: damaged: its metadata are no JSON object; write the folder again")
    check_buffers(folder / INDEX, metadata)
    return metadata | {"network": fields, "codec": _with_own_vae(index.get("codec"), folder)}


def _with_own_vae(codec: Any, folder: Path) -> Any:
    """The codec with the folder's own VAE, if it holds one, in place of the VAE's origin."""
    vae = folder / "vae"
    if isinstance(codec, dict) and codec.get("kind") == "latents" and (vae / "config.json").is_file():
        return codec | {"vae": str(vae)}
    return codec


def read_pipeline_tensors(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Read names and tensors of the pipeline's network, one at a time, as they are stored."""
    for path in _weight_files(Path(folder) / "unet"):
        yield from read_safetensors(path)


def read_safetensors(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Read names and tensors of one file, one at a time."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise SnapshotError(f"{path}: cannot be read as safetensors ({error}); copy or write it again") from None


def _weight_files(unet: Path) -> list[Path]:
    """Paths of the weights: one file, or the shards that an index lists."""
    shards = unet / f"{WEIGHTS}.index.json"
    if not shards.is_file():
        return [unet / WEIGHTS]
    names = read_json(shards).get("weight_map", {})
    if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
        raise SnapshotError(f"{shards}: damaged: it lists files outside its folder; copy or write it again")
    return [unet / name for name in sorted(set(names.values()))]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        contents = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SnapshotError(
            f"{path.parent}: no {path.name} in it; give a folder that EDM2Pipeline.save_pretrained wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{path}: cannot be read ({error}); copy or write it again") from None
    if not isinstance(contents, dict):
        raise SnapshotError(f"{path}: damaged: not a JSON object; copy or write it again")
    return contents
