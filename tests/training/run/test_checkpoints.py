"""Checkpoints: written meanwhile, complete or not there, and read by whatever number of processes."""

import shutil
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from jobs import Job, train, train_together
from tiny_run import assert_same_bits, assert_same_numbers, final_state, run, stats, tiny_config, tiny_data

from edm2.training import CheckpointError, Trainer
from edm2.training.run import checkpoint as module
from edm2.training.run.checkpoint import Checkpoints, load_checkpoint
from edm2.training.run.checkpoint_folder import find_checkpoints
from edm2.training.run.run_folder import RunFolder

SETTINGS = {"checkpoint_every": 24, "status_every": 24}


@pytest.mark.slow
def test_any_number_of_processes_goes_on_from_any_checkpoint(tmp_path):
    """Two with shards of the weights, one, four with shards, two with copies: as one that never stopped."""
    whole = final_state(run(tiny_config(tmp_path / "whole", **SETTINGS)))
    parts = tmp_path / "parts"
    train_together(2, parts, duration=24, shard=True, **SETTINGS)
    [checkpoint] = find_checkpoints(parts / "checkpoints")
    sizes = [path.stat().st_size for path in checkpoint.glob("*.safetensors")]
    assert len(sizes) == 2  # every process has written a part
    assert max(sizes) < 1.5 * min(sizes)
    run(tiny_config(parts, duration=48, **SETTINGS))
    train_together(4, parts, duration=72, shard=True, **SETTINGS)
    assert_same_numbers(train_together(2, parts, **SETTINGS), whole)
    assert [record["images_seen"] for record in stats(parts)] == [24, 48, 72, 96]


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_same_number_of_processes_resumes_to_the_bit(tmp_path, shard):
    """The sums of a report that is not due yet included: each process has its own."""
    settings = {**SETTINGS, "shard": shard, "duration": 48, "status_every": 32}
    whole = train_together(2, tmp_path / "whole", **settings)
    for late in find_checkpoints(tmp_path / "whole" / "checkpoints")[1:]:
        shutil.rmtree(late)
    assert_same_bits(train_together(2, tmp_path / "whole", **settings), whole)


class FirstReads(Trainer):
    """Trainer in whose other processes snapshots are gone when they look: the first has removed them already."""

    def _resume(self):
        if not self.processes.is_first:
            RunFolder.interim_times = forbidden
        super()._resume()


def forbidden(*arguments):
    """Stand for a method that must not be called."""
    raise AssertionError("called")


@pytest.mark.slow
def test_only_the_first_process_reads_snapshots_at_a_resume(tmp_path):
    """It removes those of a future that was given up, while others may still be on their way."""
    train_together(1, tmp_path / "run", **SETTINGS, duration=24)
    job = Job(2, tmp_path / "said", train, {"out": str(tmp_path / "run"), **SETTINGS, "duration": 48}, None, FirstReads)
    assert job.wait() == [0, 0], job.words(1)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """And what is written is the state at the time when it was due."""
    written, may_write = Checkpoints.write, threading.Event()

    def slowly(*arguments):
        assert may_write.wait(60)
        written(*arguments)

    class Watched(Trainer):
        def train_step(self, *arguments):
            if self.images_seen == 40:
                assert find_checkpoints(self.folder.checkpoints) == []  # due at 24, and still not there
                may_write.set()
            return super().train_step(*arguments)

    monkeypatch.setattr(Checkpoints, "write", slowly)
    Watched(tiny_config(tmp_path / "run", duration=48, **SETTINGS), dataset=tiny_data()).run()
    shutil.rmtree(find_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    monkeypatch.undo()
    resumed = run(tiny_config(tmp_path / "run", duration=48, **SETTINGS))
    assert_same_bits(final_state(resumed), final_state(run(tiny_config(tmp_path / "whole", duration=48, **SETTINGS))))


def test_trouble_while_writing_ends_the_run_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    class Unlucky(Trainer):
        def save_checkpoint(self):
            if self.images_seen == 48:
                self.checkpoints.wait()
                monkeypatch.setattr(module, "write_json", full)
            super().save_checkpoint()

    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint .*No space left"):
        Unlucky(tiny_config(tmp_path, **SETTINGS), dataset=tiny_data()).run()
    monkeypatch.undo()
    assert [path.name for path in find_checkpoints(tmp_path / "checkpoints")] == ["000000000024"]
    assert run(tiny_config(tmp_path, **SETTINGS)).images_seen == 96


def test_a_checkpoint_that_is_being_removed_is_none(tmp_path, monkeypatch):
    """Killed in the middle of it, a run must not resume from what is left."""

    def killed(path: Path, **options):
        if path.name.endswith(".old") and path.exists():
            next(path.glob("*.safetensors")).unlink()
            raise KeyboardInterrupt

    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(8, {"a": torch.ones(2)}, {})
    checkpoints.wait()
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(16, {"a": torch.zeros(2)}, {})
    monkeypatch.undo()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["000000000016"]
    into = {"a": torch.ones(2)}
    load_checkpoint(tmp_path / "000000000016", into)
    assert not into["a"].any()
    checkpoints.save(24, into, {})
    checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["000000000024"]


class Failing(Trainer):
    """One of several processes meets trouble of its own."""

    def train_step(self, *arguments):
        if self.processes.rank == 1 and self.images_seen == 16:
            raise ValueError("image 7 is broken")
        return super().train_step(*arguments)


def fail(changes: dict) -> None:
    try:
        train(changes, None, Failing)
    except (ValueError, RuntimeError) as error:
        print(type(error).__name__, error)
        raise SystemExit(1) from None


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_trouble_of_one_process_ends_all_of_them(tmp_path, shard):
    job = Job(2, tmp_path / "said", fail, {"out": str(tmp_path / "run"), "shard": shard})
    assert job.wait(seconds=60) == [1, 1]
    assert "ValueError image 7 is broken" in job.words(1)
    assert "OtherProcessError another process of this job has failed" in job.words(0)


def test_a_checkpoint_without_one_of_its_files_is_refused(tmp_path, monkeypatch):
    """Also where what is left looks whole: every tensor has a part in another file."""
    monkeypatch.setattr(module, "FILE_BYTES", 1 << 16)
    out = tmp_path / "run"
    train_together(2, out, duration=24, shard=True, **SETTINGS)
    run(tiny_config(out, duration=48, **SETTINGS))
    sharded, whole = find_checkpoints(out / "checkpoints")
    for checkpoint in (whole, sharded):
        files = sorted(checkpoint.glob("*.safetensors"))
        assert len(files) > 1
        files[0].unlink()
        with pytest.raises(CheckpointError, match=rf"^[^\n]*{checkpoint.name}[^\n]*$"):
            run(tiny_config(out, **SETTINGS))
        shutil.rmtree(checkpoint)


def test_a_checkpoint_of_version_0_1_goes_on(tmp_path):
    """Its tensors were written in torch's own format."""
    whole = final_state(run(tiny_config(tmp_path / "whole", **SETTINGS)))
    first = run(tiny_config(tmp_path / "old", duration=48, **SETTINGS))
    [*_, last] = find_checkpoints(tmp_path / "old" / "checkpoints")
    for file in last.glob("*.safetensors"):
        file.unlink()
    dcp.save(first.tensors(), storage_writer=dcp.FileSystemWriter(last), no_dist=True)
    assert_same_bits(final_state(run(tiny_config(tmp_path / "old", **SETTINGS))), whole)
