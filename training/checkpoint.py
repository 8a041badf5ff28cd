"""Checkpoints to resume a run from: tensors by torch.distributed.checkpoint, everything else as JSON beside them.

checkpoints/000000064000/           named after the images seen; complete as soon as it has this name
    *.distcp, .metadata             the tensors
    state.json                      the rest
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from edm2.training.safe_metadata import SafeFileSystemReader

Tensors = dict[str, "Tensor | Tensors"]
STATE_FILE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint cannot be read; the message is one line that names it and the remedy."""


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


def save_checkpoint(folder: Path, images_seen: int, tensors: Tensors, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint into `folder`, then remove all but the newest `keep`.

    It is written under a temporary name and renamed when every byte is on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{images_seen:012d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    with _one_process():
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(temporary, sync_files=True), no_dist=True)
    with open(temporary / STATE_FILE, "w", encoding="utf-8") as file:
        json.dump({"images_seen": images_seen, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():  # left by a run that was set back to an earlier checkpoint
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in find_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


@contextmanager
def _one_process() -> Iterator[None]:
    """Silence the remark that torch.distributed is not in use: it is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def find_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdigit() and (path / STATE_FILE).is_file())


def load_checkpoint(path: Path, tensors: Tensors) -> dict[str, Any]:
    """Fill `tensors` in place from the checkpoint at `path`; return the rest of its state.

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to another network.
    """
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        int(state["images_seen"])  # what the trainer relies on
        with _one_process():
            dcp.load(tensors, storage_reader=SafeFileSystemReader(path), no_dist=True)
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: cannot resume from this checkpoint ({reason[-1] if reason else type(error).__name__}); "
            "delete this folder to resume from an earlier one"
        ) from error
    return state
