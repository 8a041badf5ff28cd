"""Files that appear complete or not at all."""

import os
import stat

import pytest

from edm2.post_hoc_ema import atomic_output


def test_a_file_appears_only_when_the_block_succeeds(tmp_path):
    """Its permissions follow the umask, even where the writer replaces the temporary file."""
    path = tmp_path / "new" / "file.txt"
    with atomic_output(path) as temporary:
        assert temporary.parent == path.parent  # else the last step would not be a rename
        assert temporary.match(".file.txt.*.tmp")
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, mode=0o600))
        temporary.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"
    assert os.listdir(path.parent) == ["file.txt"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("trouble", [ValueError, KeyboardInterrupt])
def test_trouble_leaves_the_old_file_and_nothing_else(tmp_path, trouble):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half():
        with atomic_output(str(path)) as temporary:
            temporary.write_text("half")
            raise trouble

    with pytest.raises(trouble):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_name_that_cannot_be_replaced_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"), atomic_output(tmp_path / "taken") as temporary:
        temporary.write_text("all")
    assert os.listdir(tmp_path) == ["taken"]


def test_contents_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    """Else a power cut could leave the name with nothing in it."""
    path, order = tmp_path / "file.txt", []
    fsync = os.fsync

    def watched(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        order.append((kind, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with atomic_output(path) as temporary:
        temporary.write_text("all")
    assert order == [("file", False), ("folder", True)]
