"""ZIP files of stored members are the same bytes every time, whether written at once or strung together from parts."""

import hashlib
import zipfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from edm2.datasets.parts import append, member

Members = list[tuple[str, bytes]]


def numbered(count: int, size: int = 3, first: int = 0) -> Members:
    return [(f"00000/img{i:08}.png", bytes([i % 251]) * size) for i in range(first, first + count)]


def written(path: Path, members: Members) -> Path:
    with ZipFile(path, "w") as archive:
        for name, contents in members:
            archive.writestr(member(name), contents)
    return path


def test_bytes_are_those_of_earlier_versions(tmp_path: Path):
    """So a dataset made anew is the same file, on every system."""
    digest = hashlib.sha256(written(tmp_path / "a.zip", numbered(100)).read_bytes()).hexdigest()
    assert digest == "e4826fbdb8522ffbcc9946ec2723c28c89afaf7b367905841edb54a1671e4e6c"


@pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 5000], ids=["near", "far"])
@pytest.mark.parametrize("counts", [(1, 2), (0, 5), (30, 0, 70), (300, 300)])
def test_strung_together_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], limit: int
):
    """Also beyond what 16 and 32 bits can count, which is made to begin at byte 5,000 and member 51 here."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", limit // 100)
    first, names = 0, []
    with ZipFile(tmp_path / "whole.zip", "w") as archive:
        for count in counts:
            names += append(archive, written(tmp_path / f"{first}.zip", numbered(count, 50, first)))
            first += count
        archive.writestr(member("last.txt"), b"end")
    members = numbered(first, 50)
    assert names == [name for name, _ in members]
    at_once = written(tmp_path / "at-once.zip", [*members, ("last.txt", b"end")])
    assert (tmp_path / "whole.zip").read_bytes() == at_once.read_bytes()
    with ZipFile(tmp_path / "whole.zip") as archive:
        assert archive.read(names[-1]) == members[-1][1]


@pytest.mark.parametrize("damage", [b"", b"hello", b"x" * 200])
def test_what_is_no_zip_is_not_appended(tmp_path: Path, damage: bytes):
    (tmp_path / "part.zip").write_bytes(damage)
    with pytest.raises(OSError, match=r"part\.zip is damaged"), ZipFile(tmp_path / "whole.zip", "w") as archive:
        append(archive, tmp_path / "part.zip")
