"""A pool is mined as a bank of its slots would be, keeps exclusions and slots, and changes nothing where all fit in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.batch import Embeddings
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.cascade import mine
from vidssl.mining.plan import CascadePlan, plan_from
from vidssl.mining.pool import SlotPool
from vidssl.mining.rows import DTYPES
from vidssl.recipe import Mining

N, VIEWS = 120, ("residual", "rgb")


def pushed(rng, slots, step):
    views = {}
    for view in VIEWS:
        rows = rng.standard_normal((len(slots), 8)).astype(np.float32)
        views[view] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return Embeddings(views, np.array(slots, np.int64), step, 0)


def bank_with(pool, filled=N, dtype="float32", steps=4):
    rng = np.random.default_rng(0)
    bank = EmbeddingBank(N, 8, VIEWS, np.arange(N) // 3, dtype, pool=pool)
    for step in range(steps):
        bank.push(pushed(rng, np.arange(step, filled, steps), step))
    return bank


def in_pool(bank, slots, ids, plan):
    """What a bank of these slots alone gives, in slots of the whole bank."""
    every = np.arange(N)
    tables = [bank.vectors(every, view) for view in VIEWS]
    lists = [np.flatnonzero(bank.group[slots] == bank.group[one]) for one in ids]
    queries, pool = [table[ids] for table in tables], [table[slots] for table in tables]
    return np.where((found := mine(queries, pool, plan, exclude=lists, backend="oracle").ids) >= 0, slots[found], -1)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(8, N - 1),
    kind=st.sampled_from(["random", "recent"]),
    filled=st.integers(6, N),
    dtype=st.sampled_from(DTYPES),
    strategy=st.sampled_from(["cascade", "sum", "minrank"]),
)
def test_a_pool_mines_what_a_bank_of_its_slots_alone_mines(size, kind, filled, dtype, strategy):
    pool = SlotPool(size, kind, seed=3)
    bank, plan, ids = bank_with(pool, filled, dtype), CascadePlan(size, 3, 0.5, 2, strategy=strategy), np.arange(filled)
    found = bank.mine(ids, plan, *VIEWS)
    slots = np.arange(filled) if filled <= size else pool._drawn.slots
    assert len(slots) == min(size, filled)
    np.testing.assert_array_equal(found.ids, in_pool(bank, slots, ids, plan))
    np.testing.assert_array_equal(found.vectors, bank.vectors(found.ids, "rgb"))


def test_a_recent_pool_holds_the_rows_that_were_written_last():
    pool = SlotPool(40, "recent")
    bank = bank_with(pool)
    bank.mine(np.arange(5), CascadePlan(40), *VIEWS)
    assert pool._drawn is not None
    assert sorted(bank.version[pool._drawn.slots].tolist()) == [2] * 10 + [3] * 30
    assert pool._drawn.slots[bank.version[pool._drawn.slots] == 2].tolist() == list(range(2, 42, 4))  # the lower slots


def test_a_random_pool_is_drawn_anew_after_so_many_queries_and_every_batch_where_it_must_repeat():
    plan, ids = CascadePlan(30), np.arange(10)
    pool = SlotPool(30, "random", seed=1, every_rows=25)
    bank, seen = bank_with(pool), []
    for step in range(10, 16):
        bank.mine(ids, plan, *VIEWS)
        seen.append(pool._drawn.slots.tolist())
        bank.push(pushed(np.random.default_rng(step), [0], step))
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5]
    one, other = (bank_with(SlotPool(30, "random", seed=1, every_rows=1)) for _ in range(2))
    other.mine(ids, plan, *VIEWS)
    np.testing.assert_array_equal(one.mine(ids, plan, *VIEWS).ids, other.mine(ids, plan, *VIEWS).ids)


def test_the_plan_of_a_pool_has_the_last_pool_that_was_asked_for():
    asked = Mining(stages=3, pool=16, topk=4, pool_slots=1000)
    plan = plan_from(asked, 100_000)
    assert (plan.n_slots, plan.last_pool) == (1000, 16)
    assert plan_from(asked, 500) == plan_from(Mining(stages=3, pool=16, topk=4), 500)
    assert plan_from(Mining(stages=3, ratio=0.5, topk=4, pool_slots=1000), 100_000).last_pool == 250


def test_a_pool_too_small_for_its_positives_is_refused():
    with pytest.raises(Exception, match=r"mining\.topk=5 of 3 slots"):
        plan_from(Mining(stages=1, topk=5, pool_slots=3), 100)
