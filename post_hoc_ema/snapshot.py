"""Snapshots: one average of a network's weights at one time, one `.safetensors` file each.

A file holds the tensors and, as one JSON text under the key `edm2` of the safetensors metadata, everything else. Of
that text this package reads these entries:

    images_seen, sigma_rel   when the average was stored, and its EMA length: together they make a file a snapshot
    profile                  in place of sigma_rel where the average has another profile (`Profile.to_json`)
    buffers                  names of tensors that are not averages but copies (optional)
    run                      identifier of the training run (optional); all files without one are of one unnamed run
    reconstructed_from       marks weights that were reconstructed from snapshots (optional); they are not snapshots
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edm2.post_hoc_ema.files import atomic_output, parse_json, plain_line, visible_files
from edm2.post_hoc_ema.tails import Profile, RawProfile, power_profile, profile_from_json
from edm2.post_hoc_ema.tensor_files import CODES, TensorLayout, locate_tensors, read_numbers

METADATA_KEY = "edm2"
"""Key of the metadata in the header."""


class SnapshotError(ValueError):
    """Error of a file that is not what it should be; the message names it and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(plain_line(message))


class Snapshot(Protocol):
    """Interface that reconstruction reads. Readers of other formats have it too; `buffers` may be left out."""

    images_seen: int
    """Images seen by the training run when the average was stored."""

    sigma_rel: float | None
    """EMA length of the average, 0 for plain weights. A snapshot of any other profile says None here, and has an
    attribute `profile`."""

    names: Sequence[str]
    """Names of all tensors, in order."""

    buffers: Collection[str] = ()
    """Names of the tensors that are copies, not averages. Integers are copies whether named here or not."""

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, read when asked for."""
        ...


@runtime_checkable
class PartialSnapshot(Snapshot, Protocol):
    """A snapshot that can be read in parts, so that tensors of any size are combined in little memory."""

    def layout(self, name: str) -> TensorLayout:
        """Type and shape of a tensor, without reading it."""
        ...

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        """Numbers `start` to `stop` of a tensor, as [stop - start]; called from any thread."""
        ...


class SafetensorsSnapshot(PartialSnapshot):
    """A snapshot in a file written by `write_snapshot`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read names and metadata, no tensors yet.

        Raises:
            SnapshotError: The file is damaged, of another kind, or without `images_seen` and `sigma_rel` (or
                `profile`).
            FileNotFoundError: There is no such file.
        """
        self.path = Path(path)
        with open_safetensors(self.path) as file:
            self.names = tuple(file.keys())
            self.metadata = _parse_metadata(self.path, file.metadata())
        self._stored = locate_tensors(self.path)
        images_seen = self.metadata.get("images_seen")
        profile = _read_profile(self.path, self.metadata) if _is_time(images_seen) else None
        if profile is None:
            raise SnapshotError(
                f"{self.path} does not say at how many images_seen and with which sigma_rel it was averaged,"
                " so it is not a snapshot; move it elsewhere"
            )
        self.images_seen: int = self.metadata["images_seen"]
        self.profile = profile
        self.sigma_rel = profile.sigma_rel if "profile" in self.metadata else self.metadata["sigma_rel"]
        self.buffers = frozenset(self.metadata.get("buffers", ()))

    def read(self, name: str) -> Tensor:
        """One tensor, in the type in which it is stored. The file is open only meanwhile, so that memory is freed."""
        with open_safetensors(self.path) as file:
            return file.get_tensor(name)

    def layout(self, name: str) -> TensorLayout:
        return self._stored[name].layout

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        """Numbers `start` to `stop` of a tensor, in the type in which it is stored."""
        try:
            return read_numbers(self.path, self._stored[name], start, stop)
        except EOFError:
            raise SnapshotError(
                f"{self.path} cannot be read: truncated since it was opened; copy or write it again"
            ) from None


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata of a file written by `write_snapshot`; raises as `SafetensorsSnapshot` does."""
    with open_safetensors(Path(path)) as file:
        return _parse_metadata(Path(path), file.metadata())


def write_snapshot(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a `.safetensors` file, complete or not at all.

    Args:
        path: The file; its folder is created if missing.
        tensors: Any device, strides and sharing; tied tensors are stored under each name. What a tracker returned as
            an average brings `buffers` and `run` along.
        metadata: Stored as JSON. A snapshot needs `images_seen` and `sigma_rel`; see this module for other entries.
        dtype: Storage type of averages; None keeps each as it is, and so does an average with numbers that the type
            cannot hold. Buffers always keep theirs: they are no averages, and rounding constants such as Fourier
            frequencies would change the network.

    Raises:
        ValueError: A tensor of a kind that safetensors files do not have; by name.
        TypeError: Metadata that are no JSON.
    """
    metadata = {**getattr(tensors, "metadata", {}), **metadata}  # of a tracker's average
    text = metadata_json(metadata)
    stored = storable(tensors, dtype, metadata.get("buffers", ()))
    with atomic_output(path) as temporary:
        save_file(stored, temporary, metadata={METADATA_KEY: text})


def snapshot_name(images_seen: int, sigma_rel: float) -> str:
    """File name of a snapshot; names sort by time, then EMA length."""
    return f"snapshot-{images_seen:012d}-{sigma_rel:.4f}.safetensors"


def find_snapshots(folder: str | os.PathLike[str]) -> list[SafetensorsSnapshot]:
    """Open the snapshots of a run, sorted by `images_seen`, then `sigma_rel`; reconstructed weights are left out.

    Args:
        folder: A run folder (the snapshots are in its `snapshots/`) or a folder of `.safetensors` files.

    Raises:
        FileNotFoundError: There is no such folder, or no `.safetensors` file in it.
        SnapshotError: One of the files is damaged, of another kind, or of another run than the others.
    """
    folder = Path(folder)
    inner = folder / "snapshots"
    folder = inner if inner.is_dir() else folder
    paths = visible_files(folder, "*.safetensors")
    if not paths:
        raise FileNotFoundError(f"no snapshots (*.safetensors) in {folder}; give a run folder or its snapshots/")
    return open_tracked(paths)


def open_tracked(paths: Iterable[Path]) -> list[SafetensorsSnapshot]:
    """Open snapshots, sorted as by `find_snapshots`, which also says what is left out and what is raised."""
    snapshots = [SafetensorsSnapshot(path) for path in paths]
    tracked = [snapshot for snapshot in snapshots if "reconstructed_from" not in snapshot.metadata]
    refuse_several_runs(tracked)
    return sorted(tracked, key=lambda snapshot: (snapshot.images_seen, snapshot.sigma_rel or 0))


@contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """Yield an open safetensors file; whatever is wrong with it becomes an error of one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise SnapshotError(
            f"{path} cannot be read as safetensors ({error}): truncated or another format; copy or write it again"
        ) from None


def _parse_metadata(path: Path, entries: Mapping[str, str] | None) -> dict[str, Any]:
    """The JSON object under the key `edm2`."""
    try:
        metadata = parse_json((entries or {})[METADATA_KEY])
    except (KeyError, ValueError):
        metadata = None
    if not isinstance(metadata, dict):
        raise SnapshotError(
            f"{path} was not written by edm2 (no '{METADATA_KEY}' metadata); convert it or move it away"
        )
    check_buffers(path, metadata)
    return metadata


def profile_at(images_seen: int, sigma_rel: float) -> Profile:
    """Profile of a snapshot of an EMA length; plain weights at the beginning of training, and where the length is 0."""
    return power_profile(images_seen, sigma_rel) if images_seen and sigma_rel else RawProfile(images_seen)


def _read_profile(path: Path, metadata: Mapping[str, Any]) -> Profile | None:
    """The profile that metadata with a valid time tell; None if they tell none."""
    try:
        if "profile" in metadata:
            return profile_from_json(metadata["profile"])
        sigma_rel = metadata.get("sigma_rel")
        return profile_at(metadata["images_seen"], sigma_rel) if _is_sigma_rel(sigma_rel) else None
    except ValueError as error:
        raise SnapshotError(f"{path} is damaged: {error}; copy or write it again") from None


def check_buffers(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise SnapshotError unless the entry `buffers` is missing or a list of names."""
    buffers = metadata.get("buffers", [])
    if not isinstance(buffers, list) or not all(isinstance(name, str) for name in buffers):
        raise SnapshotError(f"{path} is damaged: buffers must be a list of names; copy or write it again")


def _is_time(value: Any) -> TypeGuard[int]:
    """True if this can be a number of images."""
    return type(value) is int and 0 <= value < 1 << 62


def _is_sigma_rel(value: Any) -> TypeGuard[float]:
    """True if this can be an EMA length."""
    return type(value) in (int, float) and 0 <= value < 1


def refuse_several_runs(snapshots: Sequence[Snapshot]) -> None:
    """Raise SnapshotError if snapshots are of different runs."""
    of_run: dict[Any, Snapshot] = {}
    for snapshot in snapshots:
        of_run.setdefault(getattr(snapshot, "metadata", {}).get("run"), snapshot)
    if len(of_run) > 1:
        a, b = (getattr(snapshot, "path", snapshot.images_seen) for snapshot in [*of_run.values()][:2])
        raise SnapshotError(f"{a} and {b} are of different runs; keep the files of one run in a folder")


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Metadata as a file holds them; raises TypeError for anything but JSON, NumPy's and torch's numbers."""
    return json.dumps(metadata, default=_plain)


def _plain(value: Any) -> Any:
    """A number or array of NumPy or torch, as `json` writes it."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"metadata are JSON and cannot hold {value!r}, a {type(value).__name__}; give numbers or texts")
    return value.tolist()


def storable(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, buffers: Collection[str]) -> dict[str, Tensor]:
    """Tensors as safetensors accepts them: on the CPU, contiguous, no two of them in one storage."""
    made: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if reason := _why_unstorable(tensor):
            raise ValueError(f"{name} {reason}, which no safetensors file can hold; convert it or leave it out")
        tensor = tensor.detach().to("cpu").contiguous()
        if dtype is not None and tensor.is_floating_point() and name not in buffers:
            rounded = tensor.to(dtype)
            tensor = rounded if rounded.isfinite().all() or not tensor.isfinite().all() else tensor
        storage = tensor.untyped_storage().data_ptr()
        made[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return made


def _why_unstorable(tensor: Any) -> str | None:
    """Phrase that says why this cannot be in a file; None if it can."""
    if not isinstance(tensor, Tensor):
        return f"is no tensor but a {type(tensor).__name__}"
    if tensor.is_meta:
        return "is on the meta device, without numbers"
    if tensor.layout is not torch.strided:
        return f"is of the layout {tensor.layout}"
    return None if tensor.dtype in CODES else f"is {tensor.dtype}"
