"""The index of a checkpoint of version 0.1: read, or refused; it runs nothing."""

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hostile_mutations import Attack
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from edm2.training.run.checkpoint import CheckpointError, load_checkpoint


def tensors() -> dict[str, Any]:
    """What a run might keep."""
    return {"net": {"w": torch.arange(6.0).view(2, 3)}, "ema": {"w": torch.ones(3, dtype=torch.float16)}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As version 0.1 wrote it."""
    path = tmp_path / "checkpoints" / "000000000064"
    dcp.save(tensors(), storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    (path / "state.json").write_text('{"images_seen": 64}')
    return path


def refused(checkpoint: Path) -> str:
    """Why it is refused, in one line."""
    into = {name: {key: torch.zeros_like(value) for key, value in part.items()} for name, part in tensors().items()}
    with pytest.raises(CheckpointError) as failure:
        load_checkpoint(checkpoint, into)
    line = str(failure.value)
    assert str(checkpoint) in line
    assert line.isprintable()
    return line


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "PWNED").exists()


def test_commands_that_pose_as_the_bytes_of_an_entry_are_refused(checkpoint: Path):
    """For entries that the index calls bytes instead of tensors, torch unpickles whatever a file holds."""
    stream = io.BytesIO()
    torch.save(Attack(), stream)
    (checkpoint / "__0_0.distcp").write_bytes(stream.getvalue())

    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    metadata.state_dict_metadata = dict.fromkeys(metadata.state_dict_metadata, BytesStorageMetadata())
    info = _StorageInfo("__0_0.distcp", 0, len(stream.getvalue()))
    metadata.storage_data = {MetadataIndex(name): info for name in metadata.state_dict_metadata}
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata, 4))
    assert "BytesStorageMetadata" in refused(checkpoint)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (pickle.dumps(Attack()), "posix.system, which is not allowed"),
        *[(data, "") for data in (b"", b"\x80\x04N.", b"\x80\x04}.", b"\x80\x04cposix\nsystem\n(S'touch PWNED'\ntR.")],
    ],
)
def test_commands_and_pickles_of_other_kinds_are_refused(checkpoint: Path, data: bytes, complaint: str):
    (checkpoint / ".metadata").write_bytes(data)
    assert complaint in refused(checkpoint)
