"""Files of a tracker know their buffers and their run: nothing is combined that does not belong together."""

import numpy as np
import pytest
import torch
from torch import nn

from edm2.post_hoc_ema import (
    IntervalMeans,
    PowerFunctionEMA,
    SafetensorsSnapshot,
    SnapshotError,
    find_snapshots,
    read_metadata,
    reconstruct,
    snapshot_name,
    write_snapshot,
)


def walk(net, *trackers, until, folder=None, every=1, images=64):
    """Train a module, at random, until its trackers have seen so many images; store now and then."""
    generator = torch.Generator().manual_seed(trackers[0].images_seen)
    for t in range(trackers[0].images_seen + images, until + 1, images):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape, generator=generator))
        for tracker in trackers:
            tracker.update(t)
            if folder is not None and t % (every * images) == 0:
                tracker.save(folder)


def test_buffers_are_copied_from_the_newest_file_without_being_named(tmp_path):
    """Combined like weights, variances become negative: -0.044 in ten lines. In float16, counts become infinite."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 1))
    net.register_buffer("seen", torch.tensor(0.0))
    tracker = PowerFunctionEMA(net)
    for step in range(1, 401):
        net(torch.randn(16, 6) * (1.0 if step <= 200 else 1e-3))
        net.seen += 1000
        tracker.update(16 * step)
        if step % 50 == 0:
            tracker.save(tmp_path, torch.float16)
    for weights in reconstruct(find_snapshots(tmp_path), [0.02, 0.08, 0.2]):
        assert weights["seen"] == 400_000
        assert torch.equal(weights["1.running_var"], net[1].running_var)
        assert weights["1.num_batches_tracked"] == 400
        net.load_state_dict(weights)
        assert net.eval()(torch.randn(4, 6)).isfinite().all()


def test_an_average_that_is_written_by_hand_brings_buffers_and_run_along(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    tracker = PowerFunctionEMA(net)
    tracker.update(64)
    write_snapshot(tmp_path / "a.safetensors", tracker.average(0.1), {"images_seen": 64, "sigma_rel": 0.1})
    said = read_metadata(tmp_path / "a.safetensors")
    assert said["buffers"] == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert said["run"] == tracker.run == tracker.state_dict()["run"]


def test_what_a_tracker_saves_is_what_its_averages_are(tmp_path):
    net = nn.Linear(3, 2)
    tracker = PowerFunctionEMA(net)
    walk(net, tracker, until=640)
    paths = tracker.save(tmp_path / "new", metadata={"note": "mine"})
    assert [path.name for path in paths] == [snapshot_name(640, s) for s in (0.05, 0.1)]
    for snapshot in find_snapshots(tmp_path / "new"):
        assert (snapshot.images_seen, snapshot.metadata["note"]) == (640, "mine")
        assert torch.equal(snapshot.read("weight"), tracker.average(snapshot.sigma_rel)["weight"])


# --------------------------------------------------------------------------------------------------------------- runs


def resumed(tracker, net, cls=PowerFunctionEMA):
    """Another tracker, from the first one's state as it is now."""
    state = {key: x.clone() if isinstance(x, torch.Tensor) else x for key, x in tracker.state_dict().items()}
    new = cls(net)
    new.load_state_dict(state)
    return new


@pytest.mark.parametrize("cls", [PowerFunctionEMA, IntervalMeans])
def test_a_second_run_or_a_forgotten_state_does_not_write_among_files_of_the_first(cls, tmp_path):
    """Otherwise two runs are mixed, or one step stands for the whole past."""
    net = nn.Linear(2, 2)
    first = cls(net)
    walk(net, first, until=128, folder=tmp_path)
    before = sorted(tmp_path.iterdir())
    for second in (cls(net), cls(nn.Linear(3, 3))):
        second.update(192)
        with pytest.raises(ValueError, match=r"snapshot-0+64-.* is of another run; .*load_state_dict") as caught:
            second.save(tmp_path)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    continued = resumed(first, net, cls)
    continued.update(192)
    continued.save(tmp_path)


@pytest.mark.parametrize("cls", [PowerFunctionEMA, IntervalMeans])
def test_after_going_back_files_of_the_future_that_was_given_up_are_in_the_way(cls, tmp_path):
    """They are neither overwritten in part nor taken for the run's latest."""
    net = nn.Linear(2, 2)
    tracker = cls(net)
    walk(net, tracker, until=256, folder=tmp_path, every=2)
    checkpoint = resumed(tracker, net, cls)
    walk(net, tracker, until=512, folder=tmp_path, every=2)
    with pytest.raises(ValueError, match=r"snapshot-0+384-.* was stored after 256 images, where .* resumed: remove"):
        walk(net, checkpoint, until=384, folder=tmp_path, every=2)
    for path in tmp_path.glob("snapshot-*"):
        if int(path.name.split("-")[1]) > 256:
            path.unlink()
    checkpoint.save(tmp_path)
    assert find_snapshots(tmp_path)[-1].images_seen == 384


def test_files_of_two_runs_are_not_combined(tmp_path):
    for t in (64, 128):
        tracker = PowerFunctionEMA(nn.Linear(2, 2))
        tracker.update(t)
        for s in tracker.sigma_rels:
            write_snapshot(
                tmp_path / snapshot_name(t, s), tracker.average(s), {"images_seen": t, "sigma_rel": s}
            )  # as older recipes do
    with pytest.raises(SnapshotError, match=r"snapshot-0+64-0.0500.* and .*128-0.0500.* are of different runs"):
        find_snapshots(tmp_path)
    snapshots = [SafetensorsSnapshot(path) for path in tmp_path.iterdir()]
    with pytest.raises(SnapshotError, match="are of different runs"):
        reconstruct(snapshots, [0.08])


def test_files_and_states_without_a_run_are_one_run(tmp_path):
    """Those of earlier versions, and published ones."""
    net = nn.Linear(2, 2)
    old = PowerFunctionEMA(net)
    old.update(64)
    for s in old.sigma_rels:
        tensors = dict(old.average(s))
        write_snapshot(tmp_path / snapshot_name(64, s), tensors, {"images_seen": 64, "sigma_rel": s})
    state = {key: x for key, x in old.state_dict().items() if key not in ("run", "start")}
    continued = PowerFunctionEMA(net)
    continued.load_state_dict(state)
    continued.update(128)
    continued.save(tmp_path)
    assert ["run" in snapshot.metadata for snapshot in find_snapshots(tmp_path)] == [False] * 4
    other = PowerFunctionEMA(net)
    other.update(192)
    with pytest.raises(ValueError, match="is of another run"):
        other.save(tmp_path)


def test_resuming_from_files_of_float32_is_exact(tmp_path):
    net = nn.Linear(4, 3)
    tracker = PowerFunctionEMA(net)
    walk(net, tracker, until=640)
    tracker.save(tmp_path)
    continued = PowerFunctionEMA(net)
    continued.resume(tmp_path, 640)
    assert continued.run == tracker.run
    walk(net, tracker, continued, until=1280)
    assert torch.equal(tracker.average(0.1)["weight"], continued.average(0.1)["weight"])
    with pytest.raises(ValueError, match=r"snapshot-0+704-0.0500.safetensors is missing; resume at a time"):
        continued.resume(tmp_path, 704)
    with pytest.raises(ValueError, match=r"0.05/weight is .*expected"):
        PowerFunctionEMA(nn.Linear(3, 3)).resume(tmp_path, 640)


# ------------------------------------------------------------------------------------------------ beginnings and means


def test_averages_may_begin_late_with_a_copy_and_say_so(tmp_path):
    """The profile of the clock from 0: its mass from before stays on the weights at the beginning."""
    net = nn.Linear(100, 1, bias=False).double().requires_grad_(False)
    tracker = PowerFunctionEMA(net, [0.1])
    net.weight.zero_()
    tracker.begin(36)
    for t, basis in enumerate(torch.eye(100).double()[36:], start=37):
        net.weight.copy_(basis)
        tracker.update(t)
    tracker.save(tmp_path)
    [snapshot] = find_snapshots(tmp_path)
    weights = snapshot.read("weight").flatten().numpy()
    assert (snapshot.profile.start, snapshot.profile.sigma_rel) == (36, None)
    np.testing.assert_allclose(weights[36:], -np.diff(snapshot.profile.tail(np.arange(36, 101.0))), rtol=1e-12)
    assert weights.sum() == pytest.approx(1 - 0.36**snapshot.profile.exponent)
    with pytest.raises(ValueError, match="have begun already"):
        tracker.begin(200)
    continued = PowerFunctionEMA(net, [0.1])
    continued.resume(tmp_path, 100)
    assert continued.state_dict()["start"] == 36


@pytest.mark.parametrize("times", [range(1, 13), [1, 5, 6, 10, 11, 12]])
def test_interval_means_are_means_since_the_last_file(times, tmp_path):
    """Each update stands for the time since the one before; files say since when they count."""
    net = nn.Linear(12, 1, bias=False).double().requires_grad_(False)
    tracker = IntervalMeans(net)
    assert tracker.files is not None
    for t in times:
        net.weight.copy_(torch.eye(12)[t - 1])
        tracker.update(t)
        if t in (6, 12):
            tracker.save(tmp_path)
            assert tracker.save(tmp_path) == []  # nothing since
    for snapshot, start in zip(find_snapshots(tmp_path), (0, 6), strict=True):
        assert (snapshot.profile.start, snapshot.profile.t, snapshot.profile.exponent) == (start, start + 6, 1)
        gaps = np.diff([start, *(t for t in times if start < t <= start + 6)])
        weights = snapshot.read("weight").flatten().numpy()
        np.testing.assert_allclose(weights[weights > 0], gaps / 6, rtol=1e-12)


def test_interval_means_resume_to_the_bit(tmp_path):
    net = nn.Linear(4, 3)
    tracker = IntervalMeans(net)
    walk(net, tracker, until=640, folder=tmp_path, every=4)
    from_state, from_files = resumed(tracker, net, IntervalMeans), IntervalMeans(net)
    walk(net, tracker, from_state, until=768)
    assert torch.equal(tracker.average()["weight"], from_state.average()["weight"])
    tracker.save(tmp_path)
    from_files.resume(tmp_path, 768)
    walk(net, tracker, from_files, until=1024)
    assert torch.equal(tracker.average()["weight"], from_files.average()["weight"])


@pytest.mark.parametrize("files", [16, 64])
def test_means_rebuild_every_length(files, tmp_path):
    """Within 1.5 times the error expected over a walk of unit end spread."""
    expected = {16: {0.07: 0.0067, 0.15: 0.0012}, 64: {0.07: 0.00033, 0.15: 0.00006}}[files]
    numbers, steps = 4096, 64 * 64
    net = nn.Linear(numbers, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    means, exact = IntervalMeans(net), PowerFunctionEMA(net, list(expected))
    walk(net, means, until=steps, folder=tmp_path, every=steps // files, images=1)
    nn.init.zeros_(net.weight)
    walk(net, exact, until=steps, images=1)
    rebuilt = reconstruct(find_snapshots(tmp_path), list(expected))
    for (length, error), weights in zip(expected.items(), rebuilt, strict=True):
        difference = (weights["weight"] - exact.average(length)["weight"]).square().mean().sqrt() / steps**0.5
        # the interval of an update, 1/4096 of the run, is all that a tracker resolves
        assert difference < 1.5 * error + 1e-4
