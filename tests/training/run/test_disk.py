"""What a run leaves on the disk: as much as was said before, and no more snapshots than were asked for."""

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from tiny_run import assert_same_bits, final_state, run, stats, tiny_config, tiny_data

from edm2.post_hoc_ema import find_snapshots, thin, thin_along
from edm2.training import Trainer, TrainingError
from edm2.training.initialization import fresh_network
from edm2.training.run import checkpoint, logging, output
from edm2.training.run.checkpoint_folder import find_checkpoints
from edm2.training.run.disk import DiskForecast, file_sizes, used_space
from edm2.training.schedule import due_times, is_due

THIN = {"snapshot_every": 8, "keep_snapshots": 5, "checkpoint_every": 32}
"""Twelve times, of which five are kept."""


def forecast_of(config) -> DiskForecast:
    return DiskForecast(config, file_sizes(config, fresh_network(config.network, 0)))


def times(folder: Path) -> list[int]:
    return sorted({snapshot.images_seen for snapshot in find_snapshots(folder)})


@pytest.mark.parametrize("interval", [24, 10, 8, 3, 100, 1000])
def test_times_that_are_due(interval):
    """A list of what `is_due` says step by step, and the end."""
    due = {t + 8 for t in range(0, 304, 8) if is_due(interval, t, t + 8)}
    assert due_times(interval, 8, 304) == sorted(due | {304})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keep_snapshots": 2},
        {"snapshot_precision": "bf16", "keep_checkpoints": 1},
        {"traditional_ema": 50, "sigma_rels": (0.05,), "checkpoint_every": 96},
        {"snapshot_every": 16, "checkpoint_every": 16, "keep_snapshots": 3},
    ],
    ids=str,
)
def test_the_disk_that_was_forecast_is_used(tmp_path, monkeypatch, changes):
    """At the end, and at most, to 3 %: configuration, statistics and TensorBoard are left out of it."""
    config = tiny_config(tmp_path / "run", **changes)
    peak = [0]

    def watched(module, name: str) -> None:
        act = getattr(module, name)

        def watching(*arguments):
            peak[0] = max(peak[0], used_space(tmp_path / "run"))
            return act(*arguments)

        monkeypatch.setattr(module, name, watching)

    watched(checkpoint, "_remove")
    watched(Trainer, "_thin_snapshots")
    run(config)
    forecast, used = forecast_of(config), used_space(tmp_path / "run")
    assert times(tmp_path / "run") == forecast.kept_times
    assert len(find_checkpoints(tmp_path / "run" / "checkpoints")) == min(config.keep_checkpoints, forecast.checkpoints)
    assert used == pytest.approx(forecast.final, rel=0.03)
    assert max(peak[0], used) <= 1.03 * forecast.peak


def test_a_killed_run_that_is_thinned_ends_as_if_nobody_had_killed_it(tmp_path):
    """Snapshots that it had removed after its last checkpoint stay away, and it removes the same ones again."""
    whole = run(tiny_config(tmp_path / "whole", **THIN, keep_checkpoints=3))
    assert times(tmp_path / "whole") == thin_along(range(8, 97, 8), 5)  # the newest and what serves best
    assert len(find_snapshots(tmp_path / "whole")) == 10  # of both lengths
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for late in find_checkpoints(tmp_path / "killed" / "checkpoints")[1:]:
        shutil.rmtree(late)
    resumed = run(tiny_config(tmp_path / "killed", **THIN, keep_checkpoints=3))
    assert_same_bits(final_state(resumed), final_state(whole))
    assert times(tmp_path / "killed") == times(tmp_path / "whole")
    assert stats(tmp_path / "killed") == stats(tmp_path / "whole")


def test_a_run_may_be_thinned_later(tmp_path):
    """Those that are there count, whatever their interval; checkpoints of earlier versions do not list them."""
    run(tiny_config(tmp_path, duration=48, snapshot_every=8))
    [*_, last] = find_checkpoints(tmp_path / "checkpoints")
    state = last / "state.json"
    state.write_text(state.read_text().replace('"snapshot_times"', '"another"'))
    run(tiny_config(tmp_path, snapshot_every=16, keep_snapshots=4))
    kept = thin([*range(8, 49, 8), 64], 4)
    assert times(tmp_path) == thin([*thin([*kept, 80], 4), 96], 4)


Usage = namedtuple("Usage", "total used free")


def with_space(monkeypatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, (1 << 40) - free, free))


class FillingUp(Trainer):
    """The disk is full after 48 images."""

    def train_step(self, *arguments):
        result = super().train_step(*arguments)
        if self.images_seen == 48:
            self.patch()
        return result


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"snapshot_every": 16, "checkpoint_every": 40}, "the snapshots"),
        ({"snapshot_every": 96, "checkpoint_every": 16}, "a checkpoint"),
    ],
)
def test_a_disk_without_room_is_noticed_before_anything_is_begun(tmp_path, monkeypatch, changes, what):
    """One line with the last checkpoint, from which the same command goes on when there is room."""
    config = tiny_config(tmp_path / "run", **changes)
    trainer = FillingUp(config, dataset=tiny_data())
    trainer.patch = lambda: with_space(monkeypatch, 1000)
    with pytest.raises(TrainingError, match=rf"{what} need .* and 1 kB are free; .* the last checkpoint is .*") as said:
        trainer.run()
    assert "\n" not in str(said.value)
    monkeypatch.undo()
    [*_, last] = find_checkpoints(tmp_path / "run" / "checkpoints")
    assert str(said.value).endswith(last.name)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.startswith(".") and path.suffix == ".tmp"]
    whole = final_state(run(tiny_config(tmp_path / "whole", **changes)))
    assert_same_bits(final_state(run(config)), whole)


def test_a_quota_that_is_used_up_leaves_no_half_snapshot(tmp_path, monkeypatch):
    """Free space does not tell of quotas: the system does, in the middle of a file."""
    write = output.write_snapshot

    def full(path, *arguments):
        if "000000000072" in path.name:
            path.with_name(f".{path.name}.1.tmp").touch()
            path.with_name(f".{path.name}.1.tmp").unlink()
            raise OSError(errno.EDQUOT, "Disk quota exceeded", str(path))
        write(path, *arguments)

    monkeypatch.setattr(output, "write_snapshot", full)
    with pytest.raises(TrainingError, match=r"cannot write snapshots \(Disk quota exceeded\).*000000000040"):
        run(tiny_config(tmp_path))
    assert times(tmp_path) == [24, 48]
    monkeypatch.undo()
    assert run(tiny_config(tmp_path)).images_seen == 96


@pytest.mark.parametrize(
    ("module", "writer", "file", "what"),
    [
        (output, "write_snapshot", "raw-weights.safetensors", "the raw weights"),
        (logging, "append_json_line", "stats.jsonl", "the report"),
        (logging, "append_json_line", "diagnostics.jsonl", "the diagnostics"),
    ],
)
def test_every_file_that_finds_no_room_ends_the_run_in_one_line(tmp_path, monkeypatch, module, writer, file, what):
    """An error of the system from the middle of a file names neither the file nor what to do."""
    write = getattr(module, writer)

    def full(path, *arguments):
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *arguments)

    monkeypatch.setattr(module, writer, full)
    with pytest.raises(TrainingError, match=f"cannot write {what} .No space left on device.; make room and run"):
        run(tiny_config(tmp_path, diagnostics_every=48))
    monkeypatch.undo()
    assert run(tiny_config(tmp_path)).images_seen == 96


def test_a_run_does_not_begin_where_its_first_checkpoint_finds_no_room(tmp_path, monkeypatch):
    with_space(monkeypatch, 1 << 20)
    with pytest.raises(TrainingError, match=r"the next snapshots and checkpoint need .* there is no checkpoint yet"):
        run(tiny_config(tmp_path))
    assert find_checkpoints(tmp_path / "checkpoints") == []
