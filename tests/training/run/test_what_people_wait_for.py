"""Status lines and checkpoints come by the clock, and whatever stops a run leaves something to draw from."""

import pytest
import torch
from tiny_run import StopAt, assert_same_bits, final_state, run, stats, tiny_config

import edm2
from edm2.post_hoc_ema import find_snapshots
from edm2.training.run import failures
from edm2.training.run.checkpoint_folder import find_checkpoints
from edm2.training.run.logging import Monitor


def times(folder) -> list[int]:
    return sorted({snapshot.images_seen for snapshot in find_snapshots(folder)})


def test_a_stopped_run_leaves_snapshots_that_go_with_the_next_regular_ones(tmp_path):
    whole = run(tiny_config(tmp_path / "whole"))
    config = tiny_config(tmp_path / "parts")
    run(config, callbacks=[StopAt(16)])
    assert times(tmp_path / "parts") == [16]
    assert all(snapshot.metadata["interim"] for snapshot in find_snapshots(tmp_path / "parts"))
    net = edm2.load(find_snapshots(tmp_path / "parts")[0].path)
    assert net(torch.zeros(1, 1, 8, 8), 1.0, torch.tensor([0])).isfinite().all()
    run(config, callbacks=[StopAt(32)])
    assert times(tmp_path / "parts") == [24, 32]
    run(config, callbacks=[StopAt(40)])
    assert times(tmp_path / "parts") == [24, 40]
    run(config, callbacks=[StopAt(72)])  # when snapshots are due anyway
    assert times(tmp_path / "parts") == [24, 48, 72]
    assert_same_bits(final_state(run(config)), final_state(whole))
    assert stats(tmp_path / "parts") == stats(tmp_path / "whole")
    for ours, theirs in zip(find_snapshots(tmp_path / "parts"), find_snapshots(tmp_path / "whole"), strict=True):
        assert ours.path.name == theirs.path.name
        assert "interim" not in ours.metadata


def test_a_full_disk_gets_no_snapshots_of_a_stopped_run(tmp_path, monkeypatch):
    class FillsTheDisk(StopAt):
        def on_step(self, trainer, result) -> None:
            super().on_step(trainer, result)
            monkeypatch.setattr(trainer.failures, "has_space", lambda needed: False)

    run(tiny_config(tmp_path), callbacks=[FillsTheDisk(16)])
    assert not any((tmp_path / "snapshots").iterdir())
    assert [path.name for path in find_checkpoints(tmp_path / "checkpoints")] == ["000000000016"]
    assert failures.free_space(tmp_path) > 0


@pytest.mark.parametrize("seconds", [1e-9, 600])
def test_checkpoints_come_by_the_clock_too(tmp_path, seconds):
    config = tiny_config(tmp_path, duration=32, checkpoint_every=1000, checkpoint_seconds=seconds, keep_checkpoints=9)
    run(config)
    found = [int(path.name) for path in find_checkpoints(tmp_path / "checkpoints")]
    assert found == ([8, 16, 24, 32] if seconds < 1 else [32])


def test_a_line_is_shown_by_the_clock_and_stored_by_images(tmp_path, capsys):
    """It has the error, which is one for a network that knows nothing, of held-out images too where there are any."""
    run(tiny_config(tmp_path / "often", status_seconds=1e-9, ref_lr=1e-9))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 + 6  # after every step, and every second one is stored
    assert all(line.split()[3] == "error" for line in lines)
    run(tiny_config(tmp_path / "seldom", ref_lr=1e-9))
    assert stats(tmp_path / "often") == stats(tmp_path / "seldom")
    assert [record["error"] for record in stats(tmp_path / "often")] == pytest.approx([1] * 6, abs=1e-4)
    run(tiny_config(tmp_path / "held out", holdout=8))
    assert "held out" in capsys.readouterr().out.splitlines()[-1]


def test_a_held_out_error_that_rises_is_shown_beside_its_minimum(tmp_path, capsys):
    """Also by a run that goes on. A single measurement above it is noise."""

    def lines(images_seen: int, errors: list[float]) -> list[str]:
        monitor = Monitor(tmp_path, 80, images_seen)
        for i, error in enumerate(errors, start=1):
            numbers = {"loss": 0.0, "error": 0.5, "lr": 0.1, "grad_norm": 1.0, "images_per_second": 1.0}
            monitor.report({"images_seen": images_seen + 8 * i, "holdout_error": error, **numbers})
        return [line for line in capsys.readouterr().out.splitlines() if "held out" in line]

    first = lines(0, [0.3, 0.2, 0.25, 0.26])
    assert ["(" in line for line in first] == [False, False, False, True]
    assert "held out 0.2600 (0.2000 at 16)" in first[-1]
    assert "held out 0.2100 (0.2000 at 16)" in lines(32, [0.21])[0]
    assert "(" not in lines(24, [0.201])[0]  # from an earlier checkpoint
