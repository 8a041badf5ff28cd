"""Snapshot files: what is written comes back, and whatever else lies in the folder is told in one line."""

import json
import traceback

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edm2.post_hoc_ema import (
    SafetensorsSnapshot,
    SnapshotError,
    find_snapshots,
    read_metadata,
    snapshot_name,
    write_snapshot,
)

METADATA = {"images_seen": 2048, "sigma_rel": 0.05, "buffers": ["freqs"], "network": {"channels": [1, 2], "σ": 0.5}}


def tensors():
    return {
        "weight": torch.arange(6.0).reshape(2, 3) / 7,
        "gain": torch.tensor(0.3),
        "freqs": torch.ones(3, dtype=torch.float64),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    }


def write(folder, images_seen=2048, sigma_rel=0.05, **more):
    path = folder / snapshot_name(images_seen, sigma_rel)
    write_snapshot(path, tensors(), {"images_seen": images_seen, "sigma_rel": sigma_rel, **more})
    return path


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "a.safetensors"
    write_snapshot(path, tensors(), METADATA)
    snapshot = SafetensorsSnapshot(str(path))
    assert (snapshot.images_seen, snapshot.sigma_rel) == (2048, 0.05)
    assert set(snapshot.names) == set(tensors())
    assert set(snapshot.buffers) == {"freqs"}
    assert snapshot.metadata == read_metadata(path) == METADATA
    with safe_open(path, "pt") as file:  # one text of JSON, so that any safetensors reader can show it
        assert json.loads(file.metadata().pop("edm2")) == METADATA
    for name, expected in tensors().items():
        torch.testing.assert_close(snapshot.read(name), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_storage_type_applies_to_floating_point_tensors(tmp_path, dtype):
    """Also to those that are tied, strided or trainable."""
    base = torch.nn.Parameter(torch.randn(4, 4))
    awkward = {"a": base, "b": base, "rows": base[1:3], "transposed": base.T, "every_other": base[::2, ::2]}
    write_snapshot(tmp_path / "a.safetensors", tensors() | awkward, METADATA, dtype)
    snapshot = SafetensorsSnapshot(tmp_path / "a.safetensors")
    for name, x in (tensors() | awkward).items():
        expected = x if name == "count" or name in METADATA["buffers"] else x.detach().to(dtype)
        torch.testing.assert_close(snapshot.read(name), expected, rtol=0, atol=0)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def disk_full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    with pytest.raises(TypeError, match="JSON"):
        write_snapshot(tmp_path / "a.safetensors", tensors(), {"images_seen": object()})
    monkeypatch.setattr("edm2.post_hoc_ema.snapshot.save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_snapshot(tmp_path / "a.safetensors", tensors(), METADATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("subfolder", [".", "snapshots"])
def test_snapshots_of_a_run_are_found_in_order(tmp_path, subfolder):
    folder = tmp_path / subfolder
    places = [(3000, 0.05), (1000, 0.1), (0, 0.1), (3000, 0.1), (1000, 0.05), (0, 0.05)]
    for place in places:
        write(folder, *place)
    write(folder, 3000, 0.07, reconstructed_from=[1000, 3000])  # weights made from snapshots are not snapshots
    (folder / ".snapshot.safetensors.123.tmp").write_bytes(b"half")
    (folder / "notes.txt").write_text("hello")
    (folder / "._snapshot-000000002048-0.0500.safetensors").write_bytes(b"\0\5\x16\7Mac OS X")
    found = find_snapshots(tmp_path)
    assert [(s.images_seen, s.sigma_rel) for s in found] == sorted(places)
    assert snapshot_name(8 << 20, 0.1) == "snapshot-000008388608-0.1000.safetensors"
    places = [(n, s) for n in (0, 999, 1000, 2 << 30) for s in (0.05, 0.1)]
    assert sorted(places, key=lambda place: snapshot_name(*place)) == places  # names sort by time, then width


def test_missing_files_and_a_folder_without_snapshots_are_named(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=rf"no snapshots .* in {folder}"):
            find_snapshots(folder)
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{path} is not a file"):
            SafetensorsSnapshot(path)


UNREADABLE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "truncated in the header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "a picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 100),
    "a pickle": lambda path: torch.save(tensors(), path),
}
FOREIGN = {
    "of another program": lambda path: save_file(tensors(), path, metadata={"format": "pt"}),
    "without metadata": lambda path: save_file(tensors(), path),
    "half a text": lambda path: save_file(tensors(), path, metadata={"edm2": "{half"}),
    "a list": lambda path: save_file(tensors(), path, metadata={"edm2": "[1]"}),
}


@pytest.mark.parametrize(
    ("damage", "message"),
    [(damage, "cannot be read as safetensors .* copy or write it again") for damage in UNREADABLE.values()]
    + [(damage, "not written by edm2 .* convert it or move it away") for damage in FOREIGN.values()],
    ids=[*UNREADABLE, *FOREIGN],
)
def test_damaged_and_foreign_files_are_told_in_one_line(tmp_path, damage, message):
    path = write(tmp_path)
    damage(path)
    for call in (lambda: SafetensorsSnapshot(path), lambda: read_metadata(path), lambda: find_snapshots(tmp_path)):
        with pytest.raises(SnapshotError, match=message) as caught:
            call()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "SafetensorError" not in "".join(traceback.format_exception(caught.value))


def test_a_file_damaged_after_it_was_opened_is_told_too(tmp_path):
    snapshot = SafetensorsSnapshot(write(tmp_path))
    UNREADABLE["truncated"](snapshot.path)
    with pytest.raises(SnapshotError, match="cannot be read"):
        snapshot.read("weight")


def test_weights_without_time_and_width_are_no_snapshot(tmp_path):
    path = tmp_path / "model.safetensors"
    nothing = {"images_seen": None, "sigma_rel": 0.1}
    for metadata in ({}, {"images_seen": 1}, {"sigma_rel": 0.1}, nothing, {"images_seen": "x"}):
        write_snapshot(path, tensors(), metadata)
        assert read_metadata(path) == metadata
        with pytest.raises(SnapshotError, match=rf"{path} does not say .* move it elsewhere"):
            SafetensorsSnapshot(path)
