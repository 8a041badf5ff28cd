"""What the storage and the system do to a run while it trains, and what its user then reads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import TINY, complaint, edm2, half_written, succeed, write_images


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_a_worker_that_the_system_kills_ends_the_run_in_one_line(tmp_path: Path):
    """Instead of a run that waits for it for ever. What was written until then is complete."""
    data, out = write_images(tmp_path / "data", (8, 8)), tmp_path / "run"
    command = [sys.executable, "-m", "edm2", "train", *TINY, "--data", data, "--out", out]
    command += ["--duration", "64000", "--workers", "2"]
    run = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (out / "checkpoints").is_dir() or len(children(run.pid)) < 2:
            assert time.monotonic() < deadline
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.1)
        os.kill(children(run.pid)[-1], signal.SIGKILL)
        _, complaints = run.communicate(timeout=30)
    finally:
        run.kill()
    line = complaint(complaints)
    assert run.returncode == 1
    assert "a process that reads data has died" in line
    assert "run the same command again" in line
    assert not [path for path in half_written(out) if path.is_file()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_ends_the_run_and_its_line_names_the_check(tmp_path: Path, workers: int):
    """Also with --skip-broken, which is accepted and does nothing."""
    data = write_images(tmp_path / "data", (8, 8))
    broken = data / "005.png"
    broken.write_bytes(broken.read_bytes()[:40])
    command = ["train", *TINY, "--data", data, "--duration", "256", "--workers", workers, "--no-standardize"]
    refused = edm2(*command, "--out", tmp_path / "run", "--skip-broken", "2")
    assert refused.code == 1
    assert "--skip-broken does nothing" in refused.out
    line = complaint(refused.err)
    assert f"{broken}: cannot be read" in line
    assert f"(index 5); edm2 dataset check {data} finds all such files" in line


def test_a_config_from_when_broken_files_were_skipped_loads_and_resumes(tmp_path: Path):
    data, out = write_images(tmp_path / "data", (8, 8)), tmp_path / "run"
    command = ["train", *TINY, "--data", data, "--out", out, "--workers", 0]
    succeed(*command, "--duration", "128")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"skip_broken": 3, "duration": 256}))
    assert "Resuming" in succeed(*command, "--duration", "256")
