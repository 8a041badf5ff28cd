"""Printing never ends a run, and every stop signal leaves a checkpoint."""

import os
import signal
import subprocess
import sys
import time

import pytest

PRINT = """
from edm2.tools.process import print_whatever_happens
print_whatever_happens()
import sys
for _ in range(3000):
    print("a line: \\u732b \\u00b2")
sys.stdout.flush()
open(sys.argv[1], "w").write("reached the end")
"""


def printed(tmp_path, stdout, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PRINT, str(tmp_path / "end")],
        stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment}, timeout=60,
    )  # fmt: skip


def test_a_closed_pipe_ends_nothing(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = printed(tmp_path, writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "end").read_text() == "reached the end"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_under_the_log_is_said_once(tmp_path):
    with open("/dev/full", "w") as full:
        done = printed(tmp_path, full)
    assert done.returncode == 0
    assert done.stderr.decode().splitlines() == ["Output is lost from here on: No space left on device"]


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "ascii"])
def test_characters_that_a_terminal_lacks_are_replaced(tmp_path, encoding):
    done = printed(tmp_path, subprocess.PIPE, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0
    assert done.stdout.decode(encoding).startswith("a line: ")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_closed_terminal_is_a_stop_signal_unless_it_is_ignored():
    from edm2.tools.process import stop_signals_handled

    received = []
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stop_signals_handled(received.append):
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == [signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with stop_signals_handled(received.append):
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_progress_is_lines_in_a_log_also_while_nothing_is_counted(monkeypatch, capsys):
    from edm2.tools import progress

    monkeypatch.setattr(progress, "SECONDS", 0.05)
    with progress.progress_bar(100) as bar:  # standard error is no terminal here
        time.sleep(0.12)  # what comes in the first moment was known before
        bar.update(25)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "0 of 100 images (0%)"
    late = [line for line in lines if line.startswith("25 of 100 images (25%), about ") and line.endswith(" left")]
    assert len(late) >= 2
    time.sleep(0.1)
    with progress.progress_bar(100, hidden=True) as bar:
        bar.update(100)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("running", "given", "policy"),
    [
        ((2, 2, 2), {}, "passive"),  # one other program on two processors
        ((1, 1, 1), {}, None),
        ((3, 1, 2), {}, None),  # nothing that is there all the time
        ((9, 9, 9), {"OMP_WAIT_POLICY": "active"}, "active"),
        ((9, 9, 9), {"GOMP_SPINCOUNT": "1000"}, None),
        ((), {}, None),  # no Linux
    ],
)
def test_threads_sleep_while_they_wait_where_other_programs_run(running, given, policy, monkeypatch):
    from edm2.tools import process

    class Load:
        def read_text(self) -> str:
            if not counts:
                raise FileNotFoundError
            return f"0.20 0.18 0.12 {counts.pop()}/80 11206\n"

    counts = list(running)
    monkeypatch.setattr(process, "LOAD", Load())
    monkeypatch.setattr(process.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(process.os, "environ", dict(given))
    assert process.sleep_while_waiting() == (policy == "passive")
    assert process.os.environ.get("OMP_WAIT_POLICY") == policy


def test_the_command_decides_before_torch_reads_it():
    """Torch, and OpenMP with it, is loaded by the commands alone."""
    program = "import sys, edm2.tools.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
