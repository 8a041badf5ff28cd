"""Files of stored members are, to the byte, those of Python's `zipfile`, also beyond what 16 and 32 bits can count."""

import io
import zipfile
from pathlib import Path

import pytest

from edm2.datasets import stored_zip
from edm2.datasets.stored_zip import count_members, writing_zip

Members = list[tuple[str, bytes]]


def numbered(count: int, size: int = 3, first: int = 0) -> Members:
    return [(f"00000/img{i:08}.png", bytes([i % 251]) * size) for i in range(first, first + count)]


def by_zipfile(members: Members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, contents in members:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16  # Unix; all may read
            archive.writestr(info, contents)
    return buffer.getvalue()


def written(path: Path, members: Members) -> Path:
    with writing_zip(path) as archive:
        for name, contents in members:
            archive.add(name, contents)
    return path


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions from 5,000 on count as far away: in reality, from 2 GiB on."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 5000)
    monkeypatch.setattr(stored_zip, "LIMIT", 5000)


@pytest.mark.parametrize("count", [0, 1, 100, 65_535, 65_536])
def test_bytes_are_those_of_zipfile(tmp_path: Path, count: int):
    path = written(tmp_path / "ours.zip", numbered(count))
    assert path.read_bytes() == by_zipfile(numbered(count))
    assert count_members(path) == count


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("count", [40, 60, 300])
def test_bytes_are_those_of_zipfile_far_away(tmp_path: Path, count: int):
    path = written(tmp_path / "ours.zip", numbered(count, size=100))
    assert path.read_bytes() == by_zipfile(numbered(count, size=100))
    assert count_members(path) == count


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("shares", [(1, 2), (0, 5), (30, 0, 70), (300, 300)])
def test_strung_together_is_written_at_once(tmp_path: Path, shares: tuple[int, ...]):
    """Parts that are far away inside themselves as well."""
    first, names = 0, []
    with writing_zip(tmp_path / "whole.zip") as archive:
        for share in shares:
            names += archive.append(written(tmp_path / f"{first}.zip", numbered(share, 50, first)))
            first += share
        archive.add("last.txt", b"end")
    members = numbered(first, 50)
    assert names == [name for name, _ in members]
    assert (tmp_path / "whole.zip").read_bytes() == by_zipfile([*members, ("last.txt", b"end")])


@pytest.mark.parametrize("damage", [b"", b"hello", b"x" * 200])
def test_what_is_no_such_file_is_not_appended(tmp_path: Path, damage: bytes):
    (tmp_path / "part.zip").write_bytes(damage)
    with pytest.raises(OSError, match=r"part\.zip is damaged"), writing_zip(tmp_path / "whole.zip") as archive:
        archive.append(tmp_path / "part.zip")
