"""Small runs that are killed, and go on."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from jobs import Job, train
from tiny_run import assert_same_bits, stats
from torch import Tensor

from edm2.post_hoc_ema import find_snapshots

SETTINGS = {"checkpoint_every": 16, "snapshot_every": 16, "status_every": 16, "keep_snapshots": 4, "channel_mult": (1,)}
"""Of `tiny_config`, with one level only: twelve steps, six checkpoints, six times two snapshots, of which four stay."""

WRITES = 114
"""Waits for the disk, renamings and removals in such a run, about."""


def train_until_killed(changes: dict[str, Any], final: Path, writes: int | None) -> None:
    """`train`, but this process, if it is the last of its job, dies when it has written so often."""
    if writes is not None and int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1:
        _die_after(writes)
    train(changes, final)


def _die_after(writes: int) -> None:
    """Just before the n-th wait for the disk, renaming or removal."""
    left = [writes]

    def counted(name: str) -> None:
        act = getattr(os, name)

        def counting(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **options)

        setattr(os, name, counting)

    for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
        counted(name)


class Killer:
    """Kills runs and lets them go on.

    Args:
        folder: For the runs.
        processes: Of each job that is killed: its last one.
        seed: Of the moments.
        dropout: Of the network; which activations it drops, the number of processes changes.

    Attributes:
        whole: The end of a run that nobody touched.
        killed: Jobs that did not end before their time came.
    """

    def __init__(self, folder: Path, processes: int = 1, seed: int = 0, dropout: float = 0.2) -> None:
        self.folder = folder
        self.processes = processes
        self.killed = 0
        self.random = random.Random(seed)
        self.settings = {**SETTINGS, "shard": processes > 1, "dropout": dropout}
        Job(1, folder / "server", print).wait()  # which has to start first
        start = time.monotonic()
        self.whole = self.finish(folder / "whole", processes)
        self.seconds = time.monotonic() - start

    def check(self, number: int) -> None:
        """Kill a run, let it go on. Raises AssertionError unless it ends as one that nobody touched."""
        out = self.folder / f"run{number}"
        self.kill(out, self.random.randrange(1, WRITES) if number % 2 else None)
        assert_same_bits(self.finish(out, self.processes), self.whole)
        assert stats(out) == stats(self.folder / "whole")
        for ours, theirs in zip(find_snapshots(out), find_snapshots(self.folder / "whole"), strict=True):
            assert ours.path.name == theirs.path.name
            assert all(torch.equal(ours.read(name), theirs.read(name)) for name in ours.names)
        shutil.rmtree(out)

    def kill(self, out: Path, writes: int | None) -> None:
        """Start a run and kill a process of it: when it has written so often, or (None) at a random moment."""
        job = self._job(out, self.processes, writes)
        victim = job.processes[-1]
        if writes is None:
            victim.join(self.random.uniform(0, self.seconds))
            victim.kill()
        self.killed += job.wait(120)[-1] == -signal.SIGKILL

    def finish(self, out: Path, processes: int) -> dict[str, Tensor]:
        """Let so many processes bring a run to its end, and return that."""
        job = self._job(out, processes, None)
        assert job.wait(300) == [0] * processes, job.words(0)
        return torch.load(out.with_suffix(".pt"), weights_only=True)

    def _job(self, out: Path, processes: int, writes: int | None) -> Job:
        changes = {"out": str(out), **self.settings}
        return Job(processes, out.with_suffix(".said"), train_until_killed, changes, out.with_suffix(".pt"), writes)
