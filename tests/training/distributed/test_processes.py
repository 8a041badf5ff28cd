"""Processes of one job."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from edm2.training.distributed import processes as processes_module
from edm2.training.distributed.processes import Processes, joined_processes

SCRIPT = """
import sys, time
from pathlib import Path
from edm2.training.distributed.processes import joined_processes

with joined_processes() as processes:
    time.sleep(0.5 * processes.rank)
    Path(sys.argv[1], f"{processes.rank} of {processes.count}").write_text(str(processes.shard(range(5))))
    processes.wait()
    assert processes.broadcast(f"of {processes.rank}") == "of 0"
    if processes.is_first:  # the other one slept, but must be done
        print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


def test_items_and_devices_of_each_process():
    with joined_processes() as processes:
        assert processes == Processes(rank=0, count=1)  # without torchrun there is one
        processes.wait()
        assert list(processes.shard(range(3))) == [0, 1, 2]
        assert processes.broadcast("mine") == "mine"
    shared = [item for rank in range(3) for item in Processes(rank, 3).shard(range(10))]
    assert sorted(shared) == list(range(10))
    for name, device in (("cuda", "cuda:1"), ("cpu", "cpu"), ("cuda:3", "cuda:3")):
        assert Processes(5, 8, local_rank=1).device(name) == torch.device(device)


def test_the_failure_of_another_process_is_said_in_plain_words(monkeypatch: pytest.MonkeyPatch):
    def broken() -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")

    monkeypatch.setattr("torch.distributed.barrier", broken)
    with pytest.raises(RuntimeError, match="another process of this job has failed"):
        Processes(rank=0, count=2).wait()


@pytest.mark.slow
def test_two_processes_share_and_wait(tmp_path: Path):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    out = tmp_path / "out"
    out.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run([*torchrun, str(script), str(out)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "['0 of 2', '1 of 2']" in result.stdout
    assert (out / "1 of 2").read_text() == "range(1, 5, 2)"


def test_left_over_numbers_of_processes_are_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined_processes() as processes:
        assert processes.count == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    remedy = "not MASTER_ADDR and MASTER_PORT: start all processes by torchrun"
    with pytest.raises(ValueError, match=remedy), joined_processes():
        pass
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29511")
    monkeypatch.setattr(processes_module, "SECONDS_OF_PATIENCE", 0.01)
    with processes_module._saying_who_is_missing():
        time.sleep(0.5)
    assert "process 0 of 2 waits for the others at 127.0.0.1:29511" in capfd.readouterr().err
