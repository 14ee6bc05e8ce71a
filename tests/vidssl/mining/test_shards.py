"""A bank in shards mines what one machine mines, in the same order, ties included, and what the oracle mines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vidssl.mining.shards as shards_module
from vidssl.errors import BankError, RecipeError
from vidssl.mining.brackets import Sample, sampled_slots
from vidssl.mining.cascade import mine
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan
from vidssl.mining.rows import floats, stored, table
from vidssl.mining.shards import LocalShards, cut_points, mine_sharded

STRATEGIES = ("cascade", "cascade", "single", "sum", "oracle")
WAYS = ("all scores", "sampled", "misled", "searched")
"""Small banks send all scores; larger ones what a sample says, which may mislead; the rest is searched bit by bit."""


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """How the shards are asked, whatever the size of the bank: what to give for a sample of some tables."""
    if request.param != "all scores":
        monkeypatch.setattr(shards_module, "OPEN_UP_TO", -1)

    def sample(tables, valid):
        if request.param in ("all scores", "searched") or not valid.any():
            return None
        slots = sampled_slots(int(valid.sum()), valid)
        if request.param == "misled":
            return Sample(slots, lambda view: np.ones((len(slots), tables[view].shape[1]), np.float32))
        return Sample(slots, lambda view: floats(tables[view][slots]))

    return sample


def grid(rng, rows, dim, top):
    """Rows of small integers over 8: every product is exact in float32, in any order, and ties are everywhere."""
    return (rng.integers(-top, top + 1, (rows, dim)) / 8).astype(np.float32)


def case(seed):
    """One random bank with its queries, plan, exclusions and filled slots."""
    rng = np.random.default_rng(seed)
    n, rows, dim = int(rng.integers(8, 400)), int(rng.integers(1, 9)), int(rng.choice([1, 4, 16]))
    tables = [grid(rng, n, dim, int(rng.choice([1, 3, 60]))) for _ in range(2)]
    queries = [grid(rng, rows, dim, 2) for _ in range(2)]
    valid = rng.random(n) < rng.choice([0.3, 0.9, 1.0])
    lists = [np.flatnonzero(rng.random(n) < rng.choice([0.0, 0.05, 0.6, 1.0])) for _ in range(rows)]
    while True:
        try:
            plan = CascadePlan(
                n,
                int(rng.integers(1, 8)),
                float(rng.choice([0.1, 0.3, 0.5, 0.9, 1.0])),
                int(rng.integers(1, 9)),
                str(rng.choice(["main", "alternate"])),
                str(rng.choice(STRATEGIES)),
            )
        except RecipeError:
            continue
        return queries, tables, plan, Exclusions.from_lists(lists), valid


def uneven(n, shards, seed):
    """Cuts anywhere; a shard may hold a single slot."""
    inner = np.random.default_rng(seed).choice(np.arange(1, n), min(shards, n) - 1, replace=False)
    return [0, *sorted(inner.tolist()), n]


def assert_same(found, expected):
    for name in ("ids", "scores", "count", "survivors"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_shards_mine_what_the_oracle_mines_in_the_same_order(shards, way):
    for seed in range(40):
        queries, tables, plan, exclude, valid = case((seed, shards))
        cuts = cut_points(len(valid), shards) if seed % 2 else uneven(len(valid), shards, seed)
        found = mine_sharded(LocalShards(tables, valid, cuts), queries, plan, exclude, way(tables, valid))
        assert_same(found, mine(queries, tables, plan, exclude=exclude, valid=valid, backend="oracle"))
        assert_same(found, mine(queries, tables, plan, exclude=exclude, valid=valid, backend="numpy"))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), shards=st.integers(1, 8), budget=st.integers(1, 60_000))
def test_neither_the_number_of_shards_nor_the_memory_of_scores_changes_anything(seed, shards, budget):
    queries, tables, plan, exclude, valid = case(seed)
    one = mine(queries, tables, plan, exclude=exclude, valid=valid, backend="oracle")
    many = LocalShards(tables, valid, uneven(len(valid), shards, seed))
    with pytest.MonkeyPatch.context() as patched:
        assert_same(mine_sharded(many, queries, plan, exclude, None, budget), one)
        patched.setattr(shards_module, "OPEN_UP_TO", -1)
        assert_same(mine_sharded(many, queries, plan, exclude, None, budget), one)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_shards_of_half_precision_rows_mine_what_the_oracle_mines_in_them(dtype, way):
    for seed in range(20):
        queries, tables, plan, exclude, valid = case(seed)
        kept = [stored(rows, dtype) for rows in tables]
        shards = LocalShards([table(rows) for rows in kept], valid, cut_points(len(valid), 3))
        expected = mine(queries, [floats(rows) for rows in kept], plan, exclude=exclude, valid=valid, backend="oracle")
        assert_same(mine_sharded(shards, queries, plan, exclude, way(kept, valid)), expected)


def test_continuous_rows_give_one_machine_s_positives():
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((5000, 32)).astype(np.float32) for _ in range(2)]
    queries = [rows[:16] for rows in tables]
    plan, exclude = CascadePlan(5000, 5, 0.3, 5), Exclusions.from_lists(np.arange(16)[:, None])
    shards, slots = LocalShards(tables, np.ones(5000, bool), cut_points(5000, 3)), sampled_slots(5000, None)
    expected = mine(queries, tables, plan, exclude=exclude)
    for sample in (None, Sample(slots, lambda view: tables[view][slots])):
        found = mine_sharded(shards, queries, plan, exclude, sample)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_a_good_sample_makes_one_question_of_them_all(monkeypatch):
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((20_000, 16)).astype(np.float32) for _ in range(2)]
    shards, slots = LocalShards(tables, np.ones(20_000, bool), cut_points(20_000, 3)), sampled_slots(20_000, None)
    monkeypatch.setattr(LocalShards, "begin", lambda *_: pytest.fail("it was searched bit by bit"))
    for plan in (CascadePlan(20_000, 5, 0.3, 5), CascadePlan(20_000, 3, 0.05, 5), CascadePlan(20_000, 1, 0.5, 5)):
        sample = Sample(slots, lambda view: tables[view][slots])
        found = mine_sharded(shards, [rows[:8] for rows in tables], plan, Exclusions.none(8), sample)
        assert (found.ids >= 0).all()


def test_what_ranks_the_whole_bank_is_refused():
    queries, tables, _, exclude, valid = case(0)
    plan = CascadePlan(len(valid), 1, 0.5, 1, strategy="minrank")
    with pytest.raises(BankError, match=r"mining\.strategy=minrank ranks the whole bank, which no shard holds"):
        mine_sharded(LocalShards(tables, valid, [0, len(valid)]), queries, plan, exclude)


@pytest.mark.parametrize("shards", [0, 6])
def test_a_number_of_shards_that_cannot_be_is_refused(shards):
    with pytest.raises(BankError, match=f"mining.shards={shards} of 5 slots: between 1 and 5 are allowed"):
        cut_points(5, shards)
    assert cut_points(5, 5) == [0, 1, 2, 3, 4, 5]
