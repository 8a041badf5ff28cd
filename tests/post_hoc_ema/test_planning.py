"""How many snapshots to store: what is promised is what the forecast says of them, and one less breaks it."""

import pytest
import torch

from edm2.post_hoc_ema import evenly_spaced_error, plan_storage, rounding_error, snapshots_needed, storage_dtype


@pytest.mark.parametrize("sigma_rel", [0.02, 0.03, 0.07, 0.15, 0.25])
@pytest.mark.parametrize("error", [0.05, 0.01])
def test_as_many_as_needed_and_no_more(sigma_rel, error):
    """Errors of a known table were computed independently: over that of the last weights, with two or three digits."""
    known = {(16, 0.03): (0.00131, 0.125), (8, 0.07): (0.00058, 0.198), (8, 0.15): (0.00097, 0.314)}
    known |= {(16, 0.20): (0.00029, 0.388), (64, 0.25): (4.5e-5, 0.475)}
    for (count, width), (expected, unaveraged) in known.items():
        found = evenly_spaced_error(count, width).profile_error.item()
        assert found == pytest.approx(expected / unaveraged, rel=0.02)
    count = snapshots_needed(sigma_rel, error)
    assert evenly_spaced_error(count, sigma_rel).profile_error.item() <= error
    assert count == 2 or evenly_spaced_error(count - 1, sigma_rel).profile_error.item() > error


def test_a_stored_width_needs_next_to_nothing_and_the_shortest_too_much():
    """Bytes are those of all snapshots of both widths, in a type that is the wider the more noise grows."""
    assert snapshots_needed(0.05, 0.01) == 2
    assert snapshots_needed(0.002, 0.01) is None
    assert plan_storage(0.002, 0.01).nbytes(10) is None
    plan = plan_storage(0.03, 0.05)
    assert plan.nbytes(1000) == plan.snapshots * 2 * 1000 * 2
    types = [torch.bfloat16, torch.bfloat16, torch.float16, torch.float32]
    assert [storage_dtype(gain) for gain in (0.5, 1, 5, 50)] == types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_what_rounding_does(dtype):
    """Weights whose logarithms are spread evenly over many powers of two."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.exp2(torch.rand(1_000_000, generator=generator, dtype=torch.float64) * 8 - 6)
    error = (weights.to(dtype).double() - weights) / weights
    assert rounding_error(dtype) == pytest.approx(error.square().mean().sqrt().item(), rel=0.005)  # 5 x sampling error
    assert rounding_error(dtype, 3.0) == pytest.approx(3 * rounding_error(dtype))
