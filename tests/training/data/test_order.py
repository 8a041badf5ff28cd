"""The order of images depends on the seed and the place, and on nothing else."""

from itertools import chain, islice

import numpy as np
import pytest

from edm2.training.data.order import PositionBatches, ShuffledOrder, permutation


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
def test_every_epoch_visits_each_image_once(length):
    order = ShuffledOrder(length, seed=5)
    for epoch in range(4):
        indices = order.indices(epoch * length, (epoch + 1) * length)
        assert indices.dtype == np.int64
        assert sorted(indices.tolist()) == list(range(length))


def test_epochs_and_seeds_differ():
    """Among 1000! orders, two alike mean a mistake; a shifted or reversed one counts as alike by its correlation."""
    orders = [ShuffledOrder(1000, seed).indices(e * 1000, (e + 1) * 1000) for seed in (0, 1, 2**40) for e in (0, 1)]
    correlation = np.corrcoef(np.array([np.arange(1000), *orders])) - np.eye(len(orders) + 1)
    assert np.abs(correlation).max() < 0.16  # five standard deviations, 1 / sqrt(1000)


def test_ranges_add_up_and_may_span_epochs():
    whole = ShuffledOrder(7, seed=1).indices(0, 40)
    for start in range(0, 40, 3):
        for stop in range(start, 41, 4):
            # A new object each time: the order must not depend on what was asked before.
            assert np.array_equal(ShuffledOrder(7, seed=1).indices(start, stop), whole[start:stop])
    order = ShuffledOrder(7, seed=1)
    order.indices(500, 530)
    assert np.array_equal(order.indices(0, 40), whole)  # looking back changes nothing


def test_the_order_outlives_versions_of_numpy():
    """Written down once, so that a run can be resumed with any later version."""
    assert permutation(10, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]
    assert ShuffledOrder(5, seed=7).indices(12, 20).tolist() == [0, 4, 3, 2, 1, 4, 3, 0]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_several_processes_see_together_what_one_sees(world_size, micro_batch):
    """Each owns a contiguous share of every step, whatever its micro-batches."""
    order, steps, batch = ShuffledOrder(10, seed=2), 5, 12
    shares = []
    for rank in range(world_size):
        batches = PositionBatches(order, 24, batch, micro_batch=micro_batch, rank=rank, world_size=world_size)
        per_step = batches.images_per_rank // batches.micro_batch
        shares.append(np.reshape([*chain(*islice(batches, steps * per_step))], (steps, batch // world_size)))
    assert np.array_equal(np.hstack(shares).flatten(), order.indices(24, 24 + steps * batch))
