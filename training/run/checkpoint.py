"""Checkpoints to resume a run from: tensors by torch.distributed.checkpoint, everything else as JSON beside them.

    checkpoints/000000064000/   named after the images seen; complete as soon as it has this name
        shard-*.safetensors     the tensors: files of each process
        state.json              the rest

Earlier versions wrote *.distcp files with a pickle as their index: `checkpoint_index` reads it.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import DTensor

from edm2.post_hoc_ema.files import plain_line
from edm2.training.distributed.processes import ONE_PROCESS, Processes
from edm2.training.run.checkpoint_folder import STATE_FILE, find_checkpoints, last_good_checkpoint, read_state
from edm2.training.run.checkpoint_index import SafeFileSystemReader
from edm2.training.run.files import write_json

Tensors = dict[str, "Tensor | Tensors"]

FILE_BYTES = 1 << 30
"""Tensors per file, about: a file is put together in memory before it is written."""

NEWER = {"totals.error", "totals.error_of_zero"}
"""Tensors that checkpoints of earlier versions do not have."""

TIMEOUT = timedelta(hours=1)
"""Time that a process waits for another one to write."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read; the message is one line that names it and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(plain_line(message))


def adam_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimizer's moments by parameter name, created as zeros where no step has been made yet."""
    state: Tensors = {}
    for name, parameter in net.named_parameters():
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=_step_device(optimizer, parameter)),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        state[name] = dict(optimizer.state[parameter])
    return state


def _step_device(optimizer: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Adam counts its steps on the CPU unless it is fused or capturable."""
    group = optimizer.param_groups[0]
    return parameter.device if group.get("fused") or group.get("capturable") else torch.device("cpu")


class Checkpoints:
    """The checkpoints of a run: written while it goes on, one at a time, by all of its processes together.

    Args:
        folder: Their folder; all processes must see the same.
        keep: Number to keep; older ones are removed.
        processes: Processes that write.
    """

    def __init__(self, folder: Path, keep: int, processes: Processes = ONE_PROCESS) -> None:
        self.folder = folder
        self.keep = keep
        self.processes = processes
        self._group = distributed.new_group(backend="gloo", timeout=TIMEOUT) if processes.count > 1 else None
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, images_seen: int, tensors: Tensors, state: dict[str, Any]) -> None:
        """Copy the tensors and return; they are written meanwhile. Waits for the checkpoint before.

        Raises:
            CheckpointError: that one could not be written.
        """
        self.wait()
        arguments = images_seen, _copied(tensors), state
        self._writer = threading.Thread(target=self._write_in_background, args=arguments, daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        self.check()

    def abandon(self, seconds: float) -> None:
        """Wait for at most this time, and ignore errors: a worse one is about to be raised."""
        if self._writer is not None:
            self._writer.join(seconds)

    def check(self) -> None:
        """Raise the error of the checkpoint being written, if there was one."""
        if self._error is not None:
            reason = _reason(self._error)
            raise CheckpointError(f"{self.folder}: cannot write a checkpoint ({reason}); the one before is intact")

    def _write_in_background(self, images_seen: int, tensors: Tensors, state: dict[str, Any]) -> None:
        try:
            self.write(images_seen, tensors, state)
        except (Exception, CheckpointException) as error:  # raised in the main thread; the latter is no Exception
            self._error = error

    def write(self, images_seen: int, tensors: Tensors, state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove older ones, but not the newest good one.

        It is written under a temporary name and renamed when every byte of every process is on the disk. Of whole
        tensors each rank writes some, of sharded ones its own shard.
        """
        final = self.folder / f"{images_seen:012d}"
        temporary = self.folder / f".{final.name}.tmp"
        if self.processes.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*"):  # by a run that was killed meanwhile
                shutil.rmtree(left, ignore_errors=True)
        flat = _flat(tensors)
        writer = HuggingFaceStorageWriter(str(temporary), fqn_to_index_mapping=_files(flat), save_distributed=True)
        # Planning who writes what, all ranks wait for the first: before any of them writes, the folder is empty.
        dcp.save(flat, storage_writer=writer, process_group=self._group, no_dist=self.processes.count == 1)
        if self.processes.is_first:  # the others' files are complete when dcp returns here
            write_json(temporary / STATE_FILE, {"images_seen": images_seen, **state})
            if final.exists():  # left by a run that was set back to an earlier checkpoint
                _remove(final)
            os.replace(temporary, final)
            _flush(self.folder)
            kept = {last_good_checkpoint(self.folder), *find_checkpoints(self.folder)[-self.keep :]}
            for old in find_checkpoints(self.folder):
                if old not in kept:
                    _remove(old)


def _copied(tensors: Tensors) -> Tensors:
    """Copies on the CPU; of a sharded tensor, this rank's shard."""
    return {name: _copied(value) if isinstance(value, dict) else _copy(value) for name, value in tensors.items()}


def _copy(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)  # as safetensors wants it


def _flat(tensors: Tensors, prefix: str = "") -> dict[str, Tensor]:
    """Tensors by the names that dcp gives to nested ones, such as "net.unet.out_gain"."""
    flat: dict[str, Tensor] = {}
    for name, value in tensors.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _files(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Number of the file, from 1, that each tensor is written to; the same in all processes."""
    files, size = {}, 0
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.itemsize
        files[name] = 1 + size // FILE_BYTES
    return {name: sorted(set(files.values())).index(number) + 1 for name, number in files.items()}


def _flush(folder: Path) -> None:
    """Wait until a folder's entries are on the disk, where the system can do so."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, after its name: if this is interrupted, no run will resume from what is left."""
    nameless = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(nameless, ignore_errors=True)
    os.replace(checkpoint, nameless)
    shutil.rmtree(nameless)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Report in one line that a checkpoint cannot be used, with the remedy.

    Raises:
        CheckpointError: it cannot.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise CheckpointError(
            f"{path}: cannot resume from this checkpoint ({_reason(error)}); "
            "delete this folder to resume from an earlier one"
        ) from error


def load_checkpoint(path: Path, tensors: Tensors, processes: Processes = ONE_PROCESS) -> dict[str, Any]:
    """Fill `tensors` in place from the checkpoint at `path`; return the rest of its state.

    The number of processes that wrote it, and whether tensors were sharded, make no difference.

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to another network.
    """
    flat = _flat(tensors)
    with reading(path):
        state = read_state(path)
        is_old = any(path.glob("*.distcp"))
        reader = SafeFileSystemReader(path) if is_old else HuggingFaceStorageReader(str(path))
        stored = reader.read_metadata()
        _check(stored, path, flat)  # now: if dcp fails, torch prints tracebacks before it raises
        for name in NEWER - set(stored.state_dict_metadata):
            flat.pop(name, None)
        dcp.load(flat, storage_reader=reader, no_dist=processes.count == 1)
    return state


def _check(stored: Metadata, path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError if the network is another one, ValueError if a part of a tensor is missing."""
    entries: dict[str, Any] = stored.state_dict_metadata
    sizes = {name: tuple(entry.size) for name, entry in entries.items()}
    for name in tensors:
        entry = entries.get(name)
        if entry is not None and sum(chunk.sizes.numel() for chunk in entry.chunks) != entry.size.numel():
            raise ValueError(f"not all parts of {name} are there")
    ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(name for name in {**sizes, **ours} if name.startswith("net.")):
        if sizes.get(name) != ours.get(name):
            there, here = (shapes.get(name, "missing") for shapes in (sizes, ours))
            raise CheckpointError(
                f"{path}: belongs to a run of another network ({name.removeprefix('net.')} is {there} there and {here} "
                "here); train the same network, or choose another folder"
            )


def _reason(error: BaseException) -> str:
    """Last line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
