"""Snapshots of every kind: our own (.safetensors), network pickles of the published program, pipelines of diffusers.

A file's contents tell its kind; a pipeline is a folder. A folder of pickles can be used like a run folder.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from edm2.io.checkpoint_snapshots import CheckpointSnapshot, snapshots_in_checkpoint
from edm2.io.published import PublishedSnapshot, is_reconstruction
from edm2.networks import NetworkConfig
from edm2.pipeline.folder import is_pipeline_folder, read_pipeline_metadata, read_pipeline_tensors, read_safetensors
from edm2.post_hoc_ema import (
    SafetensorsSnapshot,
    SnapshotError,
    find_snapshots,
    read_metadata as read_safetensors_metadata,
)
from edm2.post_hoc_ema.files import visible_files
from edm2.training.config import CHANGEABLE, TrainingConfig

AnySnapshot: TypeAlias = SafetensorsSnapshot | PublishedSnapshot | CheckpointSnapshot


def is_published(path: str | Path) -> bool:
    """True if a file is read as a published pickle: unless its name or its beginning is that of a safetensors file."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return False
    with path.open("rb") as file:
        return file.read(9)[8:] != b"{"  # behind the length of its header, which is JSON


ENTRIES: dict[str, type] = {
    "codec": dict, "data": dict, "guide": dict, "half_life": int, "images": dict, "reconstructed_from": list,
    "sigma_rel_of": dict, "training": dict,
}  # fmt: skip
"""Entries of metadata that readers rely on, and their types; `network` is checked where that is built."""


def _checked(path: str | Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata; raises SnapshotError if an entry of this untrusted JSON is of another type."""
    for name, kind in ENTRIES.items():
        if not isinstance(metadata.get(name), kind | None):
            raise SnapshotError(f"{path}: damaged: its entry {name} is of another type; copy or write it again")
    names = (metadata.get("data") or {}).get("class_names") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise SnapshotError(f"{path}: damaged: its names of classes are no list of texts; copy or write it again")
    return metadata


def open_snapshot(path: str | Path) -> AnySnapshot:
    """Open a snapshot: metadata and names now, tensors when asked for.

    Raises:
        SnapshotError: not a snapshot, damaged, or a pickle with anything in it that no network needs.
        OSError: the file cannot be read.
    """
    snapshot = PublishedSnapshot(path) if is_published(path) else SafetensorsSnapshot(path)
    _checked(path, snapshot.metadata)
    return snapshot


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata of a file or a pipeline's folder, with or without images seen and EMA length.

    Raises:
        SnapshotError, OSError: as `open_snapshot`.
    """
    if is_pipeline_folder(path):
        return _checked(path, read_pipeline_metadata(path))
    return _checked(path, PublishedSnapshot(path).metadata if is_published(path) else read_safetensors_metadata(path))


def read_weights(path: str | Path) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Read the metadata, and names and tensors one at a time."""
    if is_pipeline_folder(path):
        return read_pipeline_metadata(path), read_pipeline_tensors(path)
    if is_published(path):
        snapshot = PublishedSnapshot(path)
        return snapshot.metadata, ((name, snapshot.read(name)) for name in snapshot.names)
    return read_safetensors_metadata(path), read_safetensors(path)


def open_run(folder: str | Path) -> list[AnySnapshot]:
    """Open all snapshots of a run, sorted by images seen, then EMA length; reconstructed weights are left out.

    Those of a run that was killed before its first snapshot are the averages in its last checkpoint.

    Args:
        folder: A run folder, or a folder of snapshots of one kind: .safetensors, or pickles whose names give images
            seen and EMA length. Where there are `network-snapshot-*.pkl`, as the published program names them, only
            those are taken.

    Raises:
        FileNotFoundError: no such folder, or no snapshots in it.
        SnapshotError: a file is damaged or of another kind.
    """
    if not Path(folder).exists():
        raise FileNotFoundError(f"{folder}: no such folder; give a run folder, or a folder of snapshots")
    pickles = _pickles(Path(folder))
    if not pickles:
        in_checkpoint = snapshots_in_checkpoint(Path(folder) / "checkpoints")
        if in_checkpoint and not visible_files(Path(folder) / "snapshots", "*.safetensors"):
            return [*in_checkpoint]
        snapshots = find_snapshots(folder)
        for snapshot in snapshots:
            _checked(snapshot.path, snapshot.metadata)
        return [*snapshots]
    return sorted(map(PublishedSnapshot, pickles), key=lambda snapshot: (snapshot.images_seen, snapshot.sigma_rel))


def _pickles(folder: Path) -> list[Path]:
    """Pickles that are the folder's snapshots; none if its .safetensors files are."""
    if own := visible_files(folder, "network-snapshot-*.pkl"):
        return own
    if (folder / "snapshots").is_dir() or visible_files(folder, "*.safetensors"):
        return []
    return [path for path in visible_files(folder, "*.pkl") if not is_reconstruction(path.name)]


def refuse_different_runs(snapshots: Sequence[AnySnapshot]) -> None:
    """Raise SnapshotError if two snapshots differ in network, codec, data or a setting that no run changes."""
    first, *others = snapshots
    expected = _identity(first.metadata)
    for other in others:
        found = _identity(other.metadata)
        for key in sorted(expected.keys() | found.keys()):
            default = DEFAULTS.get(key)  # older versions did not have every setting
            one, another = expected.get(key, default), found.get(key, default)
            if one != another:
                raise SnapshotError(
                    f"{first.path} and {other.path} are of different runs: {key} is {one} in one and "
                    f"{another} in the other; keep one run's snapshots in a folder"
                )


def _defaults(prefix: str, configuration: type) -> dict[str, Any]:
    fields = {field.name: field.default for field in dataclasses.fields(configuration)}
    known = {name: value for name, value in fields.items() if value is not dataclasses.MISSING}
    return {f"{prefix}.{name}": value for name, value in json.loads(json.dumps(known)).items()}


DEFAULTS = _defaults("training", TrainingConfig) | _defaults("network", NetworkConfig)
"""Default settings as JSON, by their names in `_identity`."""


def _identity(metadata: dict[str, Any]) -> dict[str, Any]:
    """Settings that all snapshots of a run have in common, by name."""
    network, training = (metadata.get(key) for key in ("network", "training"))
    network, training = network if isinstance(network, dict) else {"": network}, training or {}
    settings = {f"training.{key}": value for key, value in training.items() if key not in CHANGEABLE}
    data = metadata.get("data")
    if isinstance(data, dict):  # under any name
        data = {key: value for key, value in data.items() if key not in ("name", "empty_classes")}
    others = {"codec": metadata.get("codec"), "data": data}
    return others | settings | {f"network.{key}": value for key, value in network.items()}
