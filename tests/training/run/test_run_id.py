"""Snapshots know their run, and those of a future that was given up are gone."""

import json
import shutil

import pytest
from tiny_run import StopAt, assert_same_bits, final_state, run, tiny_config

from edm2.post_hoc_ema import find_snapshots
from edm2.post_hoc_ema.snapshot import read_metadata
from edm2.training import RunFolder, RunFolderError
from edm2.training.run.checkpoint_folder import find_checkpoints


def ids(folder) -> set[str | None]:
    return {snapshot.metadata.get("run") for snapshot in find_snapshots(folder)}


def test_a_run_keeps_its_identifier_and_another_one_has_another(tmp_path):
    run(tiny_config(tmp_path / "a"), callbacks=[StopAt(32)])
    first = ids(tmp_path / "a")
    run(tiny_config(tmp_path / "a"))
    run(tiny_config(tmp_path / "b"))
    assert ids(tmp_path / "a") == first
    assert len(first) == len(ids(tmp_path / "b")) == 1
    assert None not in first
    assert first != ids(tmp_path / "b")


@pytest.mark.parametrize("damage", ["", "[1]", None], ids=str)
def test_a_run_keeps_its_identifier_if_the_record_of_its_inputs_is_lost(tmp_path, damage):
    """Its snapshots would else be of two runs in the end. What cannot be read is not taken for missing."""
    run(tiny_config(tmp_path), callbacks=[StopAt(48)])
    inputs = tmp_path / "inputs.json"
    inputs.unlink()
    if damage is not None:
        inputs.write_text(damage)
        with pytest.raises(RunFolderError, match=r"inputs.json: is damaged; remove it to go on"):
            run(tiny_config(tmp_path))
        inputs.unlink()
    run(tiny_config(tmp_path))
    assert len(ids(tmp_path)) == 1
    assert None not in ids(tmp_path)


def test_going_back_to_an_earlier_checkpoint_removes_later_snapshots(tmp_path):
    """Until then they counted as the latest of the run, in sweeps and in `edm2 generate RUN`."""
    config = tiny_config(tmp_path / "run", checkpoint_every=32, keep_checkpoints=9)
    whole = final_state(run(config))
    files = [snapshot.path.name for snapshot in find_snapshots(tmp_path / "run")]
    assert max(snapshot.images_seen for snapshot in find_snapshots(tmp_path / "run")) == 96
    for checkpoint in find_checkpoints(tmp_path / "run" / "checkpoints"):
        if int(checkpoint.name) > 32:
            shutil.rmtree(checkpoint)
    run(config, callbacks=[StopAt(40)])
    assert max(snapshot.images_seen for snapshot in find_snapshots(tmp_path / "run")) == 40
    assert_same_bits(final_state(run(config)), whole)
    assert [snapshot.path.name for snapshot in find_snapshots(tmp_path / "run")] == files


def test_raw_weights_say_that_a_run_is_finished_also_one_that_was_extended(tmp_path):
    """A job looks for them to know whether to go on."""
    run(tiny_config(tmp_path))
    longer = tiny_config(tmp_path, duration=128)
    run(longer, callbacks=[StopAt(104)])
    assert not RunFolder(tmp_path).raw_weights.exists()
    run(longer)
    assert read_metadata(RunFolder(tmp_path).raw_weights)["images_seen"] == 128


def test_a_run_that_lost_all_checkpoints_begins_anew_without_its_old_future(tmp_path):
    config = tiny_config(tmp_path / "run")
    run(config)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    run(config, callbacks=[StopAt(48)])
    assert max(snapshot.images_seen for snapshot in find_snapshots(tmp_path / "run")) == 48
    assert len(ids(tmp_path / "run")) == 1


def test_a_run_of_an_earlier_version_stays_without_identifier(tmp_path):
    """Its old files have none, and files of one run go together."""
    config = tiny_config(tmp_path / "run")
    run(config, callbacks=[StopAt(48)])
    inputs = tmp_path / "run" / "inputs.json"
    known = json.loads(inputs.read_text())
    del known["run"]
    inputs.write_text(json.dumps(known))
    for snapshot in find_snapshots(tmp_path / "run"):
        snapshot.path.unlink()
    run(config)
    assert ids(tmp_path / "run") == {None}
