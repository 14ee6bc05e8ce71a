from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.loading.order import Cursor, Order, steps_of
from vidssl.errors import DataError

quick = settings(max_examples=30, deadline=None)


@st.composite
def orders(draw):
    world, batch = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    n = draw(st.integers(world * batch, 60))
    rows = np.sort(np.random.default_rng(n).choice(1000, n, replace=False))
    seed = draw(st.integers(0, 2**40))
    return rows, batch, [Order(rows, batch, rank=rank, world=world, seed=seed) for rank in range(world)]


def taken(order: Order, steps: int) -> list[np.ndarray]:
    return [one.instance for one in islice(order.walk(), steps)]


class Seen:
    """How often a run saw each video in each epoch, whoever its workers were: the ledger of the property below."""

    def __init__(self, rows: np.ndarray, epochs: int) -> None:
        self.rows, self.times = rows, np.zeros((epochs, rows[-1] + 1), np.int64)

    def step(self, ranks: list[Order], cursor: Cursor) -> Cursor:
        """One step of all ranks: entered, and no video twice in it."""
        parts = [order.take(cursor) for order in ranks]
        ids, epochs = (np.concatenate([getattr(part, name) for part in parts]) for name in ("instance", "epoch"))
        assert len(set(ids.tolist())) == len(ids) == ranks[0].batch * len(ranks)
        assert len({part.after for part in parts}) == 1
        np.add.at(self.times, (epochs, ids), 1)
        return parts[0].after

    def check(self, cursor: Cursor) -> None:
        """Every epoch that is over was seen whole, each video once; of the present one `taken` videos, none twice."""
        assert (self.times[: cursor.epoch, self.rows] == 1).all()
        assert self.times[cursor.epoch].max() <= 1
        assert self.times[cursor.epoch].sum() == cursor.taken
        assert self.times.sum() == cursor.seen(len(self.rows))


def test_each_video_comes_once_in_every_epoch_whatever_workers_and_batches_come_and_go():
    """520 runs of 2-4 spans (workers, batch, steps until the next kill), most of them ended within an epoch."""
    draw, straddled, owed, changes = np.random.default_rng(8), 0, 0, 0
    for case in range(520):
        rows = np.sort(draw.choice(90, draw.integers(2, 40), replace=False))
        seen, cursor = Seen(rows, 20), Cursor()
        for _ in range(draw.integers(2, 5)):
            world = int(draw.integers(1, min(len(rows), 3) + 1))
            batch = int(draw.integers(1, len(rows) // world + 1))
            ranks = [Order(rows, batch, rank=rank, world=world, seed=case) for rank in range(world)]
            changes += cursor.taken > 0
            for _ in range(draw.integers(1, 4)):
                straddled += cursor.taken + world * batch > len(rows)
                cursor = seen.step(ranks, cursor)
                owed += bool(cursor.owed)
        seen.check(cursor)
    assert straddled > 500
    assert owed > 200
    assert changes > 500


@quick
@given(orders(), st.integers(1, 4))
def test_ranks_share_out_each_epoch_without_a_repeated_and_without_a_lost_id(made, epochs):
    rows, batch, ranks = made
    steps = steps_of(epochs * len(rows), batch * len(ranks))
    walks = [list(islice(order.walk(), steps)) for order in ranks]
    for epoch in range(epochs):
        seen = np.concatenate([one.instance[one.epoch == epoch] for walk in walks for one in walk])
        assert np.array_equal(np.sort(seen), rows)


@quick
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_any_number_of_workers_sees_the_same_global_batches(seed, step):
    rows = np.arange(100, 177)
    by_world = [
        np.concatenate(
            [taken(Order(rows, 8 // world, rank=rank, world=world, seed=seed), step + 1)[-1] for rank in range(world)]
        )
        for world in (1, 2, 4, 8)
    ]
    for ids in by_world[1:]:
        assert np.array_equal(ids, by_world[0])


def test_each_epoch_and_each_seed_has_its_own_permutation():
    first = taken(Order(np.arange(64), 64, rank=0, world=1, seed=1), 6)
    other = taken(Order(np.arange(64), 64, rank=0, world=1, seed=2), 1)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])
    assert np.array_equal(first[5], taken(Order(np.arange(64), 64, rank=0, world=1, seed=1), 6)[5])


def test_the_last_samples_of_an_epoch_share_a_step_with_the_first_of_the_next():
    walk = list(islice(Order(np.arange(11), 3, rank=0, world=1, seed=0).walk(), 8))
    assert [one.epoch.tolist() for one in walk] == [[0] * 3] * 3 + [[0, 0, 1]] + [[1] * 3] * 3 + [[1, 2, 2]]
    assert [one.first_epoch for one in walk] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [(one.after.epoch, one.after.taken) for one in walk[2:5]] == [(0, 9), (1, 1), (1, 4)]


def test_a_video_at_the_end_of_one_epoch_and_the_start_of_the_next_waits_for_the_step_after():
    rows = np.arange(5)
    for seed in range(40):
        order = Order(rows, 4, rank=0, world=1, seed=seed)
        first, both, after = islice(order.walk(), 3)
        last = np.setdiff1d(rows, first.instance)
        assert both.instance[0] == last
        next_epoch = Order(rows, 5, rank=0, world=1, seed=seed).take(Cursor(1)).instance
        assert np.array_equal(both.instance[1:], next_epoch[next_epoch != last][:3])
        waits = last[0] in next_epoch[:4] and next_epoch[3] != last[0]
        assert both.after.owed == ((int(np.flatnonzero(next_epoch == last)[0]),) if waits else ())
        if waits:
            assert after.instance[0] == last


def test_a_step_of_a_run_without_a_cursor_is_where_that_run_stood():
    """11 videos, 4 a step: two steps an epoch, and its last three samples were left out."""
    assert [Cursor.of_steps(step, 11, 4) for step in range(4)] == [
        Cursor(0, 0),
        Cursor(0, 4),
        Cursor(1, 0),
        Cursor(1, 4),
    ]


def test_fewer_videos_than_one_step_are_refused_with_a_batch_that_fits():
    with pytest.raises(
        DataError, match=r"^7 videos are fewer than one step needs \(4 on each of 2 workers\).*batch=3 "
    ):
        Order(np.arange(7), 4, rank=0, world=2, seed=0)
