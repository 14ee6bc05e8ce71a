from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.loading.order import Order
from vidssl.errors import DataError

quick = settings(max_examples=30, deadline=None)


@st.composite
def orders(draw):
    world, batch = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    n = draw(st.integers(world * batch, 60))
    rows = np.sort(np.random.default_rng(n).choice(1000, n, replace=False))
    seed = draw(st.integers(0, 2**40))
    return rows, batch, [Order(rows, batch, rank=rank, world=world, seed=seed) for rank in range(world)]


@quick
@given(orders(), st.integers(0, 3))
def test_ranks_share_out_each_epoch_without_a_repeated_id(made, epoch):
    rows, batch, ranks = made
    steps = {order.steps_per_epoch for order in ranks}
    assert steps == {len(rows) // (batch * len(ranks))}
    seen = np.concatenate([order.ids(epoch * max(steps) + t) for order in ranks for t in range(max(steps))])
    assert len(np.unique(seen)) == len(seen) == max(steps) * batch * len(ranks)
    assert np.isin(seen, rows).all()


@quick
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_any_number_of_workers_sees_the_same_global_batches(seed, step):
    rows = np.arange(100, 177)
    by_world = [
        np.concatenate([Order(rows, 8 // world, rank=rank, world=world, seed=seed).ids(step) for rank in range(world)])
        for world in (1, 2, 4, 8)
    ]
    for ids in by_world[1:]:
        assert np.array_equal(ids, by_world[0])


def test_each_epoch_and_each_seed_has_its_own_permutation():
    first = Order(np.arange(64), 64, rank=0, world=1, seed=1)
    other = Order(np.arange(64), 64, rank=0, world=1, seed=2)
    assert not np.array_equal(first.ids(0), first.ids(1))
    assert not np.array_equal(first.ids(0), other.ids(0))
    assert np.array_equal(first.ids(5), Order(np.arange(64), 64, rank=0, world=1, seed=1).ids(5))


def test_the_epoch_changes_after_its_last_whole_batch():
    order = Order(np.arange(11), 3, rank=0, world=1, seed=0)
    assert [order.epoch(step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_fewer_videos_than_one_step_are_refused_with_a_batch_that_fits():
    with pytest.raises(
        DataError, match=r"^7 videos are fewer than one step needs \(4 on each of 2 workers\).*batch=3 "
    ):
        Order(np.arange(7), 4, rank=0, world=2, seed=0)
