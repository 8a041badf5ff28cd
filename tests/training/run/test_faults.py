"""Runs that are killed lose nothing but time."""

import os
import shutil

import pytest
from killing import Killer
from tiny_run import assert_same_numbers

from edm2.training.run.checkpoint_folder import find_checkpoints

RUNS = int(os.environ.get("EDM2_KILLED_RUNS", "20"))


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_bit(tmp_path):
    """Weights, moments, averages, snapshots and records; every second one is killed in the middle of writing."""
    killer = Killer(tmp_path)
    for number in range(RUNS):
        killer.check(number)
    assert killer.killed > RUNS / 2


@pytest.mark.slow
@pytest.mark.parametrize("writes", [2, 3])
def test_one_of_two_with_shares_is_killed_while_saving(tmp_path, writes):
    """The other ends by itself; one process, and four, go on from the checkpoint before."""
    killer = Killer(tmp_path, processes=2, dropout=0.0)
    killer.kill(tmp_path / "one", writes)
    assert killer.killed == 1
    assert len(find_checkpoints(tmp_path / "one" / "checkpoints")) == writes - 1
    shutil.copytree(tmp_path / "one", tmp_path / "four")
    for out, processes in (("one", 1), ("four", 4)):
        assert_same_numbers(killer.finish(tmp_path / out, processes), killer.whole)
