"""`edm2 train --keep-snapshots`: what is said before, what is left, and that the other commands make do with it."""

import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from command_line import TINY, complaint, edm2, succeed

from edm2.post_hoc_ema import find_snapshots, thin_along
from edm2.training.run.disk import used_space

DIGITS = ("train", "--data", "digits", "--duration", 768, *TINY, "--snapshot", 64)
"""Twelve times."""

UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def thinned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(A run that keeps six times, what it said)."""
    out = tmp_path_factory.mktemp("thinned") / "run"
    scored = ("--eval", "0.05", "--eval-every", 4, "--eval-samples", 10)
    return out, succeed(*DIGITS, "--keep-snapshots", 6, "--out", out, *scored)


def test_what_will_be_left_is_said_before(thinned):
    """Bytes to 3 %, and what thinning costs in exactness."""
    out, said = thinned
    assert re.search(r"^snapshots: +12 \(6 times, kept of 12, EMA lengths 0.05 and 0.1\), fp32$", said, re.MULTILINE)
    worst = r"lengths 0.02 to 0.25 at the end with errors up to ([\d.]+) %, ([\d.]+) % with all snapshots kept$"
    less, all_kept = map(float, re.search(worst, said, re.MULTILINE).groups())
    assert less > all_kept > 0
    disk = r"^disk: +about ([\d.]+) (.B) in .*; up to ([\d.]+) (.B)"
    size, unit, peak, _ = re.search(disk, said, re.MULTILINE).groups()
    samples = sum(path.stat().st_size for path in (out / "samples").iterdir())
    assert float(size) * UNITS[unit] == pytest.approx(used_space(out) - samples, rel=0.03)
    assert float(peak) > float(size)
    times = sorted({snapshot.images_seen for snapshot in find_snapshots(out)})
    assert times == thin_along(range(64, 769, 64), 6), "the times that serve best are left"


def test_other_commands_take_gaps_for_granted(thinned, tmp_path):
    """No word of snapshots that are missing, which a run with gaps by accident gets."""
    out, _ = thinned
    assert "no snapshot" not in edm2("reconstruct", out, "--std", "0.07", "--out", tmp_path).err
    drawn = ("--samples", 10, "--detector", "pixels", "--out", tmp_path / "swept")
    swept = edm2("sweep", out, "--std", "0.05,0.1", *drawn)
    assert swept.code == 0, swept.err
    assert "no snapshot" not in swept.err
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    next((copy / "snapshots").glob("*-0.1000.safetensors")).unlink()
    assert "no snapshot" in edm2("reconstruct", copy, "--std", "0.07", "--out", tmp_path / "more").err


def test_too_small_a_disk_is_told_before_and_ends_a_run_only_where_it_must(monkeypatch, tmp_path):
    """Snapshots may be fetched meanwhile, so the whole run need not fit; its first files must."""
    free = [3_000_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free[0]))
    said = succeed(*DIGITS, "--out", tmp_path / "run", "--dry-run")
    assert re.search(r"^WARNING: +\d\.\d+ MB more are to be written and 3 MB are free; make room", said, re.MULTILINE)
    assert "--keep-snapshots 64" in said
    free[0] = 100_000
    result = edm2(*DIGITS, "--out", tmp_path / "run")
    assert result.code == 1
    assert re.search(r"snapshots and checkpoint need 1.\d+ MB, and 100 kB are free; make room", complaint(result.err))
