"""The index of a checkpoint of version 0.1: read, or refused; it runs nothing and reads no other file."""

import io
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

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


def load(checkpoint: Path) -> dict[str, Any]:
    """Its tensors, into zeros."""
    into = {name: {key: torch.zeros_like(value) for key, value in part.items()} for name, part in tensors().items()}
    load_checkpoint(checkpoint, into)
    return into


def refused(checkpoint: Path) -> str:
    """Why it is refused, in one line."""
    with pytest.raises(CheckpointError) as failure:
        load(checkpoint)
    line = str(failure.value)
    assert str(checkpoint) in line
    assert line.isprintable()
    return line


def change(checkpoint: Path, mischief: Callable[[Metadata], None]) -> None:
    """Write the index anew after some mischief."""
    path = checkpoint / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    mischief(metadata)
    path.write_bytes(pickle.dumps(metadata, 4))


class Attack:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch PWNED",)


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And nothing takes long."""
    monkeypatch.chdir(tmp_path)
    signal.alarm(30)
    yield
    signal.alarm(0)
    assert not (tmp_path / "PWNED").exists()


def test_what_was_saved_is_loaded(checkpoint: Path):
    for name, part in load(checkpoint).items():
        for key, value in part.items():
            assert torch.equal(value, tensors()[name][key])


def test_an_index_of_commands_is_refused(checkpoint: Path):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Attack()))
    assert "posix.system, which is not allowed" in refused(checkpoint)


def test_commands_that_pose_as_the_bytes_of_an_entry_are_refused(checkpoint: Path):
    """For entries that the index calls bytes instead of tensors, torch unpickles whatever a file holds."""
    stream = io.BytesIO()
    torch.save(Attack(), stream)
    (checkpoint / "__0_0.distcp").write_bytes(stream.getvalue())

    def call_it_bytes(metadata: Metadata) -> None:
        metadata.state_dict_metadata = dict.fromkeys(metadata.state_dict_metadata, BytesStorageMetadata())
        info = _StorageInfo("__0_0.distcp", 0, len(stream.getvalue()))
        metadata.storage_data = {MetadataIndex(name): info for name in metadata.state_dict_metadata}

    change(checkpoint, call_it_bytes)
    assert "BytesStorageMetadata" in refused(checkpoint)


def test_commands_in_the_place_of_a_tensor_are_refused(checkpoint: Path):
    stream = io.BytesIO()
    torch.save(Attack(), stream)
    (checkpoint / "__0_0.distcp").write_bytes(stream.getvalue())

    def at_the_start(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            info.offset, info.length = 0, len(stream.getvalue())

    change(checkpoint, at_the_start)
    refused(checkpoint)


@pytest.mark.parametrize("name", ["../elsewhere.distcp", "/etc/passwd", "", "..", "sub/x.distcp", 7, None])
def test_files_elsewhere_are_refused(checkpoint: Path, name: Any):
    shutil.copy(checkpoint / "__0_0.distcp", checkpoint.parent / "elsewhere.distcp")

    def point_elsewhere(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = name

    change(checkpoint, point_elsewhere)
    assert "index" in refused(checkpoint)


def with_the_size(size: Any) -> Callable[[Metadata], None]:
    def mischief(metadata: Metadata) -> None:
        metadata.state_dict_metadata["net.w"].size = size

    return mischief


def nested(depth: int) -> tuple:
    """A short pickle, which takes 2^depth steps to be hashed, compared or shown."""
    value: Any = (1,)
    for _ in range(depth):
        value = (value, value)
    return value


def key_of_many_steps(metadata: Metadata) -> None:
    object.__setattr__(next(iter(metadata.storage_data)), "offset", nested(60))  # when it is in the dict already


def transformed(metadata: Metadata) -> None:
    for info in metadata.storage_data.values():
        info.transform_descriptors = ["zstd"]


@pytest.mark.parametrize(
    "mischief",
    [
        with_the_size(nested(60)),
        with_the_size("2, 3"),
        with_the_size([2, 3]),
        with_the_size(torch.Size([1 << 40, 1 << 20])),
        with_the_size(torch.Size([3, 2])),
        transformed,
        key_of_many_steps,
        lambda metadata: metadata.state_dict_metadata.pop("net.w"),
        lambda metadata: metadata.storage_data.clear(),
        lambda metadata: setattr(metadata, "storage_data", []),
        lambda metadata: setattr(metadata, "storage_meta", None),
        lambda metadata: setattr(metadata, "planner_data", nested(60)),
        lambda metadata: setattr(metadata, "state_dict_metadata", nested(60)),
        lambda metadata: setattr(metadata.state_dict_metadata["net.w"], "chunks", nested(60)),
        lambda metadata: metadata.state_dict_metadata["net.w"].chunks.clear(),
        lambda metadata: setattr(metadata, "surprise", 1),
    ],
)  # fmt: skip
def test_an_index_that_torch_would_not_have_written_is_refused(checkpoint: Path, mischief: Callable[[Metadata], None]):
    change(checkpoint, mischief)
    refused(checkpoint)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04.",
        b"\x80\x04N.",
        b"\x80\x04}.",
        b"\x80\x04]r\xff\xff\xff\x7f.",  # a memo of two billion places: C's unpickler would reserve them all
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",  # bytes without end
        b"\x80\x04]" + b"2\x86" * 100 + b"h\0\x8f.",  # DUP, which no index needs
        b"(" * 100_000,
        b"\x80\x04\x8c\x05torch\x8c\x04Size\x93N}\x8c\x05shapeK\x01s\x86b.",  # attributes for a class
        b"\x80\x04cposix\nsystem\n(S'touch PWNED'\ntR.",
        b"\x80\x04iposix\nsystem\n.",
    ],
)
def test_pickles_of_other_kinds_are_refused(checkpoint: Path, data: bytes):
    (checkpoint / ".metadata").write_bytes(data)
    refused(checkpoint)


def test_a_class_is_not_changed(checkpoint: Path):
    """A pickle can give attributes to whatever it has built, and to a class it has only named."""
    data = b"\x80\x04\x8c&torch.distributed.checkpoint.filesystem\x8c\x0c_StorageInfo\x93N}\x8c\x06offsetK\x07s\x86b."
    (checkpoint / ".metadata").write_bytes(data)
    refused(checkpoint)
    assert not hasattr(_StorageInfo, "offset")
