"""The bank takes finite unit rows, keeps the last of each slot, and hands out positives from its own rows."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.batch import Embeddings
from vidssl.errors import BankError
from vidssl.mining.bank import EmbeddingBank, Taken, bad_row
from vidssl.mining.cascade import mine
from vidssl.mining.plan import CascadePlan

VIEWS = ("residual", "rgb")


def unit(rng, rows, dim=8):
    values = rng.standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def pushed(rng, slots, step=0, dim=8):
    return Embeddings({view: unit(rng, len(slots), dim) for view in VIEWS}, np.array(slots, np.int64), step, 0)


def full_bank(n=60, dtype="float32", group=None):
    rng = np.random.default_rng(0)
    bank = EmbeddingBank(n, 8, VIEWS, group, dtype)
    bank.push(pushed(rng, np.arange(n), 3))
    return bank


@settings(max_examples=40, deadline=None)
@given(slots=st.lists(st.integers(0, 9), max_size=20), seed=st.integers(0, 99))
def test_of_a_slot_pushed_twice_the_last_row_stays_and_pushing_again_changes_nothing(slots, seed):
    rows = pushed(np.random.default_rng(seed), slots, 4)
    bank, expected = EmbeddingBank(10, 8, VIEWS), np.zeros((10, 8), np.float32)
    assert bank.push(rows) == Taken(len(set(slots)))
    for slot, row in zip(slots, rows.views["rgb"], strict=True):
        expected[slot] = row
    for _ in range(2):
        np.testing.assert_array_equal(bank.views["rgb"], expected)
        assert set(np.flatnonzero(bank.version == 4)) == set(slots)
        bank.push(rows)


def spoil(rows, view, value):
    values = rows.views[view].copy()
    values[1] = value
    return Embeddings({**rows.views, view: values}, rows.instance, rows.step, rows.rank)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: Embeddings({"rgb": r.views["rgb"]}, r.instance, 0, 0), "a push brought rgb"),
        (lambda r: Embeddings(r.views, r.instance[:1], 0, 0), r"have shape \(2, 8\), not \(1, 8\)"),
        (lambda r: Embeddings(r.views, r.instance + 5, 0, 0), r"instance ids 9\.\.10 do not fit a bank of 10 slots"),
        (lambda r: Embeddings(r.views, r.instance - 5, 0, 0), r"instance ids -1\.\.0 do not fit"),
    ],
)
def test_a_push_that_does_not_fit_is_refused_whole(change, sentence):
    bank = EmbeddingBank(10, 8, VIEWS)
    with pytest.raises(BankError, match=sentence):
        bank.push(change(pushed(np.random.default_rng(0), [4, 5])))
    assert bank.filled == 0
    assert not bank.views["rgb"].any()


@pytest.mark.parametrize(
    ("view", "value", "first"),
    [
        ("rgb", np.nan, "rgb row of instance 5 at step 0 has length nan"),
        ("residual", np.inf, "residual row of instance 5 at step 0 has length inf"),
        ("rgb", 1.0, "rgb row of instance 5 at step 0 has length 2.83"),
        ("residual", 0.0, "residual row of instance 5 at step 0 has length 0"),
    ],
)
def test_a_bad_row_is_left_out_and_named_and_the_good_ones_are_taken(view, value, first):
    bank, rows = EmbeddingBank(10, 8, VIEWS), pushed(np.random.default_rng(0), [4, 5, 7])
    assert bank.push(spoil(rows, view, value)) == Taken(2, bad=1, first=first)
    assert np.flatnonzero(bank.version >= 0).tolist() == [4, 7]
    for name in VIEWS:
        np.testing.assert_array_equal(bank.views[name][[4, 7]], rows.views[name][[0, 2]])
        assert not bank.views[name][5].any()
    assert bad_row(bank) is None


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(list(range(6))), seed=st.integers(0, 99))
def test_pushes_in_any_order_give_the_bank_that_pushes_in_order_give(order, seed):
    rng = np.random.default_rng(seed)
    steps = [pushed(rng, rng.permutation(10)[:4], step) for step in range(6)]
    straight, mixed = EmbeddingBank(10, 8, VIEWS), EmbeddingBank(10, 8, VIEWS)
    late = 0
    for step in range(6):
        straight.push(steps[step])
    for step in order:
        before = mixed.version.copy()
        late += mixed.push(steps[step]).late
        assert (mixed.version >= before).all()
    for name, values in straight.state().items():
        np.testing.assert_array_equal(mixed.state()[name], values)
    assert mixed.step == straight.step == 5
    assert (late > 0) or all((straight.version[steps[i].instance] >= i).all() for i in range(6))


def test_a_bank_that_was_rewound_takes_rows_of_the_step_it_goes_on_at():
    bank, rng = full_bank(), np.random.default_rng(4)  # all rows of step 3
    bank.rewind(2)
    assert (bank.version == 1).all()
    assert bank.step == 1
    assert bank.push(pushed(rng, [7], 2)) == Taken(1)
    empty = EmbeddingBank(10, 8, VIEWS)
    empty.rewind(0)
    assert (empty.version == -1).all()


def test_positives_are_mined_with_the_bank_s_own_rows_and_carry_the_trained_view_s_vectors():
    bank, plan = full_bank(group=np.arange(60) // 3), CascadePlan(60, 3, 0.4, 4)
    ids = np.array([7, 0, 59])
    found = bank.mine(ids, plan, "residual", "rgb")
    tables = [bank.views[view] for view in VIEWS]
    lists = [np.flatnonzero(bank.group == bank.group[slot]) for slot in ids]
    expected = mine([table[ids] for table in tables], tables, plan, exclude=lists, backend="oracle")
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.survivors, expected.survivors)
    np.testing.assert_array_equal(found.vectors, bank.views["rgb"][found.ids])
    assert found.mined_at.tolist() == [3, 3, 3]


def test_half_filled_rows_mine_and_unfilled_ones_get_nothing():
    bank, rng = EmbeddingBank(40, 8, VIEWS), np.random.default_rng(1)
    bank.push(pushed(rng, np.arange(0, 40, 2), 6))
    found = bank.mine(np.array([4, 5]), CascadePlan(40, 3, 0.5, 4), "residual", "rgb")
    assert (found.ids[0] >= 0).all()
    assert (found.ids[0] % 2 == 0).all()
    assert found.survivors.tolist() == [[10, 5, 4], [0, 0, 0]]  # n is 20 filled slots
    assert (found.ids[1] == -1).all()
    assert found.mined_at.tolist() == [6, -1]
    assert not found.vectors[1].any()


def test_an_empty_bank_hands_out_nothing():
    found = EmbeddingBank(9, 8, VIEWS).mine(np.arange(3), CascadePlan(9, 1, 0.5, 2), "residual", "rgb")
    assert (found.ids == -1).all()
    assert found.ids.shape == (3, 2)


def test_with_siblings_only_a_row_gets_nothing_and_no_stamp():
    bank = full_bank(6, group=np.zeros(6, np.int64))
    found = bank.mine(np.arange(6), CascadePlan(6, 1, 0.5, 2), "residual", "rgb")
    assert (found.ids == -1).all()
    assert (found.mined_at == -1).all()


@pytest.mark.parametrize(("dtype", "alike"), [("float16", 0.95), ("bfloat16", 0.8)])
def test_a_half_precision_bank_mines_nearly_the_same(dtype, alike):
    plan, ids = CascadePlan(60, 3, 0.4, 4), np.arange(60)
    wide, half = (full_bank(dtype=name).mine(ids, plan, "residual", "rgb") for name in ("float32", dtype))
    assert (wide.ids == half.ids).mean() > alike
    assert half.vectors.dtype == np.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_half_precision_bank_mines_what_the_oracle_mines_in_the_rows_that_it_keeps(dtype):
    bank, plan, ids = full_bank(dtype=dtype), CascadePlan(60, 3, 0.4, 4), np.arange(60)
    tables = [bank.vectors(np.arange(60), view) for view in VIEWS]
    expected = mine([table[ids] for table in tables], tables, plan, exclude=list(ids[:, None]), backend="oracle")
    for backend in ("numpy", "torch", "faiss"):
        found = bank.mine(ids, plan, "residual", "rgb", backend=backend)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.vectors, bank.vectors(expected.ids, "rgb"))


def test_pushing_beside_mining_never_shows_half_a_row():
    bank, rng, stop = full_bank(400), np.random.default_rng(3), threading.Event()
    plan = CascadePlan(400, 3, 0.5, 5)

    def write():
        while not stop.is_set():
            bank.push(pushed(rng, np.arange(400), 4))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            vectors = bank.mine(np.arange(50), plan, "residual", "rgb").vectors
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=2), 1, atol=1e-5)
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: EmbeddingBank(0, 8, VIEWS), "needs slots, width and distinct views"),
        (lambda: EmbeddingBank(5, 8, ("a", "a")), "distinct views"),
        (lambda: EmbeddingBank(5, 8, VIEWS, dtype="int8"), "allowed are float32, float16 and bfloat16"),
        (lambda: EmbeddingBank(5, 8, VIEWS, np.zeros(4, np.int64)), r"groups have shape \(4,\)"),
        (lambda: full_bank().mine(np.array([60]), CascadePlan(60), "residual", "rgb"), "do not fit a bank of 60"),
        (
            lambda: full_bank().mine(np.array([0]), CascadePlan(60), "flow", "rgb"),
            "the bank holds residual, rgb, not flow",
        ),
    ],
)
def test_a_bank_that_cannot_be_is_refused(make, sentence):
    with pytest.raises(BankError, match=sentence):
        make()
