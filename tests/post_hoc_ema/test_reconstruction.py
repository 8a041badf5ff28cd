"""Reconstruction from snapshots: golden numbers, agreement with tracking, and every way to ask for the impossible."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from golden_data import arrays, table
from memory_snapshot import MemorySnapshot
from torch import nn

from edm2.post_hoc_ema import (
    PowerFunctionEMA,
    find_snapshots,
    reconstruct,
    reconstruct_tensors,
    rounding_error,
    snapshot_name,
    tail_error,
    write_snapshot,
)
from edm2.post_hoc_ema.reconstruction import Reconstruction


@dataclass
class SnapshotWithBuffers(MemorySnapshot):
    buffers: tuple[str, ...] = ()


def snapshots(places=((1, 0.05), (1, 0.1), (2, 0.05), (2, 0.1)), dtype=torch.float32, **more):
    generator = torch.Generator().manual_seed(0)
    return [
        MemorySnapshot(
            t, s, {"w": torch.randn(3, generator=generator).to(dtype), "b": torch.ones(2, dtype=dtype), **more}
        )
        for t, s in places
    ]


def tracked_run(folder, targets, updates=400, every=50, dtype=None):
    """Train at random, store snapshots in `folder`, and track `targets` directly; returns that tracker and the time."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    stored, direct = PowerFunctionEMA(net), PowerFunctionEMA(net, targets)
    buffers = [name for name, _ in net.named_buffers()]
    for k in range(1, updates + 1):
        with torch.no_grad():
            for i, p in enumerate(net.parameters()):
                p.fill_(np.sin(3 * k / updates + i))
            net[1].running_mean.fill_(k)
        for tracker in (stored, direct):
            tracker.update(64 * k)
        if k % every == 0:
            for s in stored.sigma_rels:
                metadata = {"images_seen": 64 * k, "sigma_rel": s, "buffers": buffers}
                write_snapshot(folder / snapshot_name(64 * k, s), stored.average(s), metadata, dtype)
    return direct, 64 * updates


def golden_snapshots(numbers, key):
    triples = zip(numbers["snap/nimg"].tolist(), numbers["snap/std"].tolist(), numbers[key], strict=True)
    return [MemorySnapshot(t, s, {"theta": x}) for t, s, x in triples]


@pytest.mark.parametrize("when", ["mid", "final"])
@pytest.mark.parametrize(("key", "tolerance"), [("fp64", 1e-12), ("fp32", 5e-6), ("fp16", 5e-6)])
def test_golden_reconstruction(golden, key, tolerance, when):
    """Tolerances of the golden README: rounding in the type of accumulation, times the sum of coefficients."""
    numbers = arrays(golden, "phema/endtoend.safetensors")
    at = table(golden, "phema/phema.json")["endtoend"][f"{when}_nimg"]
    states = reconstruct(golden_snapshots(numbers, f"snap/{key}"), numbers["target_std"].tolist(), at, method="density")
    result = torch.stack([state["theta"] for state in states])
    expected = numbers[f"recon_{key}/{when}"]
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("when", ["mid", "final"])
@pytest.mark.parametrize("key", ["fp32", "fp16"])
def test_golden_reconstruction_stored_in_float16(golden, key, when, tmp_path):
    """Through files, as a user does it; equal to one unit in the last place, as rounding may fall either way."""
    numbers = arrays(golden, "phema/endtoend.safetensors")
    at = table(golden, "phema/phema.json")["endtoend"][f"{when}_nimg"]
    for s in golden_snapshots(numbers, f"snap/{key}"):
        metadata = {"images_seen": s.images_seen, "sigma_rel": s.sigma_rel}
        write_snapshot(tmp_path / snapshot_name(s.images_seen, s.sigma_rel), s.tensors, metadata)
    states = reconstruct(find_snapshots(tmp_path), numbers["target_std"].tolist(), at, method="density")
    expected = numbers[f"recon_{key}_tool_output_fp16/{when}"].numpy()
    result = torch.stack([state["theta"] for state in states]).half().numpy()
    ulp = np.spacing(np.maximum(np.abs(result), np.abs(expected)))
    assert (np.abs(result - expected) <= ulp).all()


def test_reconstruction_agrees_with_tracking(tmp_path):
    """Within the error of tails: for weights with |dθ/du| <= 3/T over [0, T], by Cauchy and Schwarz,

    |∫ (P̂ - P) dθ| <= 3 √(1/T) ||P̂ - P||.
    """
    targets = [0.06, 0.08, 0.13]
    direct, at = tracked_run(tmp_path, targets, every=20)
    reconstruction = Reconstruction(find_snapshots(tmp_path), targets)
    errors = tail_error(reconstruction.profiles, reconstruction.wanted[None], reconstruction.coefficients[None])
    states = reconstruct(find_snapshots(tmp_path), targets)
    for sigma_rel, state, error in zip(targets, states, errors, strict=True):
        expected = direct.average(sigma_rel)
        assert state.keys() == expected.keys()
        bound = 3 * error / np.sqrt(at)
        assert bound < 0.01  # tight enough to tell: from one width to the next the averages change by 0.04 and more
        for name, x in state.items():
            torch.testing.assert_close(x, expected[name], rtol=0, atol=bound)


def test_the_past_is_reconstructed_from_what_was_stored_by_then(tmp_path):
    """As if training had stopped there."""
    _, end = tracked_run(tmp_path, [0.1])
    found, at = find_snapshots(tmp_path), end // 2
    (until,) = reconstruct([s for s in found if s.images_seen <= at], [0.07])
    (whole,) = reconstruct(found, [0.07], at)
    assert all(torch.equal(x, until[name]) for name, x in whole.items())


@pytest.mark.parametrize(
    ("stored", "result"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)]
    + [(torch.float64, torch.float64), (torch.complex64, torch.complex64)],
)
def test_sums_are_float32_at_least(stored, result):
    (state,) = reconstruct(snapshots(dtype=stored), [0.07])
    assert {x.dtype for x in state.values()} == {result}
    assert state["b"].real.tolist() == pytest.approx([1, 1])  # coefficients sum to 1


def test_buffers_and_integers_are_copied_from_the_last_snapshot_used():
    given = [
        SnapshotWithBuffers(t, s, {"w": torch.tensor([1.0]), "mean": torch.tensor([10.0 * t]), "n": torch.tensor(t)})
        for t in (1, 2, 3)
        for s in (0.05, 0.1)
    ]
    for s in given:
        s.buffers = ("mean",)
    a, b = reconstruct(given[::-1], [0.03, 0.2], at=2)
    assert a["mean"].tolist() == b["mean"].tolist() == [20]
    assert a["n"].item() == 2
    a["mean"].fill_(0)
    assert b["mean"].item() == 20
    assert given[3].tensors["mean"].item() == 20


def test_order_of_snapshots_and_initial_weights_do_not_matter():
    """Snapshots are left alone, whatever becomes of the result."""
    given = snapshots()
    initial = MemorySnapshot(0, 0.05, {"w": torch.full((3,), torch.nan), "b": torch.zeros(2)})
    (expected,) = reconstruct(given, [0.07])
    (state,) = reconstruct([given[2], initial, given[0], given[3], given[1]], [0.07])
    assert all(torch.equal(x, expected[name]) for name, x in state.items())
    before = [s.tensors["w"].clone() for s in given]
    state["w"].fill_(0)
    assert all(torch.equal(s.tensors["w"], x) for s, x in zip(given, before, strict=True))


def test_each_tensor_is_read_once_and_only_when_its_turn_comes():
    """Hence memory holds one tensor per width, not a network. First and last told before how far weights move."""
    given = snapshots()
    stream = reconstruct_tensors(given, [0.03, 0.07, 0.2])
    assert all(not s.reads for s in given)
    name, tensors = next(stream)
    assert (name, len(tensors)) == ("w", 3)
    assert all(s.reads == {"w": 1} for s in given[1:-1])
    assert [given[i].reads for i in (0, -1)] == [{"w": 2, "b": 1}] * 2
    assert [name for name, _ in stream] == ["b"]
    assert all(s.reads == {"w": 1, "b": 1} for s in given[1:-1])


def test_a_stored_length_comes_back_from_a_single_file():
    """As it is, whatever else is stored."""
    given = snapshots()
    for inputs in (given, given[2:3]):
        (state,) = reconstruct(inputs, [0.05])
        assert all(torch.equal(x, given[2].tensors[name]) for name, x in state.items())


def test_statistics_of_the_weights_decide_on_the_noise():
    """Of a walk whose files are in float16: D, θ² and the variance of rounding, and the error that comes out."""
    generator = torch.Generator().manual_seed(0)
    net, walk = nn.Linear(20_000, 1, bias=False), 0.0
    tracker, exact = PowerFunctionEMA(net), PowerFunctionEMA(net, [0.015])
    given, steps = [], 640
    start = torch.randn(1, 20_000, generator=generator)
    for k in range(1, steps + 1):
        walk = walk + torch.randn(1, 20_000, generator=generator) * 0.2 / steps**0.5
        net.weight.data = start + walk
        tracker.update(k), exact.update(k)
        if k % (steps // 64) == 0:
            given += [MemorySnapshot(k, s, {"w": tracker.average(s)["weight"].half()}) for s in tracker.sigma_rels]
    true = exact.average(0.015)["weight"]
    reconstruction = Reconstruction(given, [0.015])
    statistics = reconstruction.statistics
    assert statistics.drift == pytest.approx(0.04 / steps, rel=0.05)
    assert statistics.mean_square == pytest.approx(1.04, rel=0.05)
    assert statistics.rounding == pytest.approx(rounding_error(torch.float16) ** 2 * 1.04, rel=0.05)
    _, expected = reconstruction.forecast()
    found = {m: reconstruct(given, [0.015], method=m)[0]["w"] for m in ("tails", "density")}
    errors = {m: ((w - true).norm() / true.norm()).item() for m, w in found.items()}
    assert errors["tails"] < 0.6 * errors["density"]  # rounding grows 33-fold there
    assert errors["tails"] == pytest.approx(expected.item(), rel=0.2)  # steps are not a continuous walk


def test_an_unknown_method_and_densities_of_other_profiles_are_refused():
    given = snapshots([(10, 0.0), (20, 0.0)])  # plain weights
    reconstruct(given, [0.1])
    with pytest.raises(ValueError, match="knows power functions from time 0 only, not a plain weights at 20"):
        reconstruct(given, [0.1], method="density")
    with pytest.raises(ValueError, match="method='tail' must be one of tails, density"):
        reconstruct(given, [0.1], method="tail")


@pytest.mark.parametrize(
    ("given", "sigma_rels", "at", "message"),
    [
        ([], [0.1], None, "needs two snapshots or more, found 0"),
        ([], [0.1], 5, "needs two snapshots or more up to 5 images seen, found 0"),
        (snapshots([(0, 0.05), (0, 0.1), (1, 0.1)]), [0.2], None, "found 1"),
        (snapshots([(1, 0.1), (2, 0.1)]), [0.2], 1, "up to 1 images seen, found 1"),
        (snapshots([(10, 0.1), (20, 0.1)]), [0.1], 21, "no snapshot was stored at 21 images seen; .* are 20$"),
        (snapshots([(10, 0.1), (20, 0.1)]), [0.1], 5, "no snapshot was stored at 5 images seen; .* are 10$"),
        (snapshots([(10, 0.1), (20, 0.1), (30, 0.1)]), [0.1], 19, "at 19 images seen; .* are 10 and 20$"),
        (snapshots(), [0.1, 0.2887], None, r"sigma_rel=0\.2887 must be"),
        (snapshots(), [0.0], None, r"sigma_rel=0\.0 must be"),
        (snapshots([(1, 0.1), (2, 0.1), (2, 0.1)]), [0.1], None, r"two averages of 2 images at sigma_rel=0\.1"),
        ([*snapshots([(1, 0.1)], extra=torch.ones(1)), *snapshots([(2, 0.1)])], [0.1], None, "different .* has extra"),
        ([*snapshots([(1, 0.1)]), *snapshots([(2, 0.1)], extra=torch.ones(1))], [0.1], None, "different .* has extra"),
    ],
)
def test_impossible_requests_are_refused_at_once_in_one_line(given, sigma_rels, at, message):
    with pytest.raises(ValueError, match=message) as caught:
        reconstruct_tensors(given, sigma_rels, at)  # at the call, before anything is read or written
    assert "\n" not in str(caught.value)
    assert all(not s.reads for s in given)
