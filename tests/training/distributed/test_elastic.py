"""Processes that die or hang: the others end in time, and torchrun starts all of them again."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from jobs import Job, start_server, train
from tiny_run import assert_same_bits, stats
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from edm2.training import Trainer
from edm2.training.callbacks import Callback, SampleGrids
from edm2.training.distributed import processes as distributed
from edm2.training.run.checkpoint_folder import find_checkpoints

pytestmark = pytest.mark.slow  # jobs of several processes, most of which wait for a timeout

SETTINGS = {"checkpoint_every": 16, "status_every": 16, "duration": 64}


class Dying(Trainer):
    """The second process is killed in the middle of a step: when it asks for a gradient."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        split = self.step.accumulation.split

        def dying(batches, position):
            if self.processes.rank == 1 and self.images_seen >= 36:
                self.die()
            return split(batches, position)

        self.step.accumulation.split = dying

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(Dying):
    """It sleeps instead."""

    def die(self):
        time.sleep(1000)


def fall(kind: type[Trainer], changes: dict) -> None:
    """Train, and leave as `edm2` does."""
    try:
        train(changes, None, kind)
    except distributed.OtherProcessError as error:
        print(f"Error: {error}")
        raise SystemExit(1) from None


@pytest.mark.parametrize("shard", [False, True])
def test_a_process_killed_in_the_middle_of_a_step_ends_the_others_at_once(tmp_path, shard):
    """No patience is needed for a connection that is closed. A complete checkpoint is there to go on from."""
    changes = {"out": str(tmp_path / "run"), "shard": shard, **SETTINGS}
    job = Job(2, tmp_path / "said", fall, Dying, changes)
    assert job.wait(seconds=60) == [1, -signal.SIGKILL], job.words(0)
    assert job.words(0).count("another process of this job has failed") == 1
    assert "Traceback" not in job.words(0)
    assert find_checkpoints(tmp_path / "run" / "checkpoints")


def test_a_process_that_hangs_ends_the_others_when_their_patience_does(tmp_path):
    """Of three, two say so and leave; the third would sleep on, but torchrun ends it."""
    changes = {"out": str(tmp_path / "run"), **SETTINGS, "patience": 3.0, "batch_size": 12, "duration": 60}
    job = Job(3, tmp_path / "said", fall, Hanging, changes)
    assert job.wait(seconds=25) == [1, None, 1], job.words(0)
    for rank in (0, 2):
        assert job.words(rank).count("does not answer") == 1, job.words(rank)
        assert "Traceback" not in job.words(rank)


class Scoring(Callback):
    def on_snapshot(self, trainer):
        time.sleep(4)


class Slow(Trainer):
    """The first process scores and draws for longer than the timeout of a step."""

    def __init__(self, *arguments, **options) -> None:
        callbacks = [Scoring(), SampleGrids(lambda *arguments: time.sleep(4))]
        super().__init__(*arguments, callbacks=callbacks, **options)


@pytest.mark.parametrize("shard", [False, True])
def test_processes_wait_for_what_the_first_does_alone(tmp_path, shard):
    changes = {"out": str(tmp_path / "run"), "duration": 16, "sample_every": 16, "patience": 2.0, "shard": shard}
    job = Job(2, tmp_path / "said", train, changes, None, Slow)
    assert job.wait(seconds=60) == [0, 0], job.words(1)


def try_again(kind: type[Trainer], changes: dict, final: Path) -> None:
    """As torchrun starts it; only the first time is something wrong."""
    torch.set_num_threads(1)
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    train(changes, final, kind if first else Trainer)


@pytest.mark.parametrize("kind", [Dying, Hanging])
def test_torchrun_starts_all_again_and_the_run_goes_on_by_itself(tmp_path, kind):
    """To the bit, without gaps or repeats in the records: `torchrun --max-restarts 1`, here as its agent."""
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        rdzv_configs={"timeout": 60}, start_method="forkserver", monitor_interval=0.1,
    )  # fmt: skip
    changes = {"out": str(tmp_path / "run"), "patience": 10.0 if kind is Hanging else 1800.0, **SETTINGS}
    start_server()
    elastic_launch(settings, try_again)(kind, changes, tmp_path / "final.pt")
    whole = tmp_path / "whole"
    job = Job(2, tmp_path / "said", train, {**changes, "out": str(whole)}, tmp_path / "whole.pt")
    assert job.wait() == [0, 0], job.words(0)
    ends = [torch.load(tmp_path / name, weights_only=True) for name in ("final.pt", "whole.pt")]
    assert_same_bits(*ends)
    assert stats(tmp_path / "run") == stats(whole)
