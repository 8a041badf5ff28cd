"""A sweep scores each EMA length of a run in the same way, and names the best."""

from pathlib import Path

import pytest
import torch

from edm2.judging import PixelJudge
from edm2.model import load, network_from_state, read_metadata
from edm2.planning import plan_run
from edm2.post_hoc_ema import find_snapshots, reconstruct
from edm2.sweeping import Sweep, sweep_run
from edm2.training import ArrayDataset, Dataset, RunFolder, Trainer, codec_from_json, open_dataset

LENGTHS = [0.15, 0.05, 0.10]
OPTIONS = {"count": 12, "num_steps": 2}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = open_dataset("digits")
    return ArrayDataset(whole.images(range(200)), whole.labels(range(200)), whole.class_names, whole.levels, "digits")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    """A few steps of a tiny network."""
    out = tmp_path_factory.mktemp("sweep") / "run"
    choices = {
        "model_channels": 8, "channels_per_head": 8, "batch_size": 32, "duration": 256, "snapshot_every": 64,
        "rampup_images": 0, "sample_every": None, "holdout": 0,
    }  # fmt: skip
    Trainer(plan_run(digits, "digits", str(out), "digits8", None, choices), digits).run()
    return out


@pytest.fixture(scope="module")
def sweep(run, digits) -> Sweep:
    return sweep_run(run, LENGTHS, digits, **OPTIONS)


def test_one_point_per_length_in_the_order_asked_for(sweep):
    assert [point.sigma_rel for point in sweep.points] == LENGTHS


def test_the_best_has_the_lowest_distance(sweep):
    assert sweep.best in sweep.points
    assert sweep.best.score.frechet == min(point.score.frechet for point in sweep.points)


def test_a_point_is_what_reconstruction_and_judging_give_by_hand(sweep, run, digits):
    point = sweep.points[0]
    snapshots = find_snapshots(run)
    [state] = reconstruct(snapshots, [point.sigma_rel])
    assert state.keys() == point.state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in point.state.items())
    metadata = snapshots[-1].metadata
    net = network_from_state(metadata, state)
    by_hand = PixelJudge(digits).judge(net, codec_from_json(metadata["codec"]), **OPTIONS)
    assert by_hand == point.score


def test_raw_weights_and_floor_are_for_comparison(sweep, run, digits):
    judge = PixelJudge(digits)
    raw = RunFolder(run).raw_weights
    assert sweep.raw == judge.judge(load(raw), codec_from_json(read_metadata(raw)["codec"]), **OPTIONS)
    assert sweep.floor == judge.floor(OPTIONS["count"])


def test_midway_there_are_no_raw_weights(run, digits, sweep):
    midway = sweep_run(run, LENGTHS[:1], digits, at=128, **OPTIONS)
    assert midway.raw is None
    assert midway.points[0].score != sweep.points[0].score


def test_an_unfinished_run_has_no_raw_weights(run, digits):
    """A folder of snapshots alone will do."""
    assert sweep_run(run / "snapshots", LENGTHS[:1], digits, **OPTIONS).raw is None


def test_progress_goes_over_the_lengths(run, digits):
    seen = []

    def progress(lengths):
        seen.append(len(lengths))
        return lengths

    sweep_run(run, LENGTHS[:2], digits, progress=progress, **OPTIONS)
    assert seen == [2]


def test_mistakes_are_told_before_the_work(run, digits, tmp_path):
    with pytest.raises(ValueError, match="100 images"):
        sweep_run(run, LENGTHS, digits, at=100, **OPTIONS)
    with pytest.raises(FileNotFoundError, match="no snapshots"):
        sweep_run(tmp_path, LENGTHS, digits, **OPTIONS)
    big = ArrayDataset(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="too many to compare"):
        sweep_run(run, LENGTHS, big, **OPTIONS)
