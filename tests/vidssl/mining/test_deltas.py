"""A mirror that applies deltas is the bank, whatever was written between them, and begins anew with another bank."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vidssl.mining.pushes import VIEWS, pushed
from vidssl.errors import BankError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.rows import DTYPES

N, DIM = 40, 4


def equal(mirror, bank):
    return mirror.step == bank.step and all(
        np.array_equal(values, mirror.state()[name]) for name, values in bank.state().items()
    )


def follow(mirror, bank, mark, at_most):
    """Apply deltas until there is no more; returns the mark and how many there were."""
    for number in range(1, 1000):
        delta = bank.changed_since(mark, at_most)
        assert len(delta.slots) <= at_most
        mirror.apply(delta)
        mark = delta.mark
        if not delta.more:
            return mark, number
    raise AssertionError("a mirror never catches up with a bank at rest")


ACTIONS = st.lists(
    st.one_of(
        st.lists(st.integers(0, N - 1), min_size=1, max_size=12),  # a push of these slots
        st.just("rewind"),
        st.just("follow"),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS, at_most=st.integers(1, 15), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_a_mirror_that_applied_all_deltas_equals_the_bank(actions, at_most, dtype, seed):
    rng, mark = np.random.default_rng(seed), None
    bank, mirror = (EmbeddingBank(N, DIM, VIEWS, dtype=dtype) for _ in range(2))
    for step, action in enumerate(actions):
        if action == "rewind":
            bank.rewind(int(rng.integers(step + 1)))
        elif action == "follow":
            mark, _ = follow(mirror, bank, mark, at_most)
            assert equal(mirror, bank)
        else:
            bank.push(pushed(rng, action, step))
    mark, _ = follow(mirror, bank, mark, at_most)
    assert equal(mirror, bank)
    assert len(bank.changed_since(mark).slots) == 0


def test_a_delta_brings_only_what_was_written_since():
    rng, bank = np.random.default_rng(0), EmbeddingBank(N, DIM, VIEWS)
    bank.push(pushed(rng, np.arange(N), 1))
    mark = bank.changed_since(None).mark
    bank.push(pushed(rng, [7, 3, 7], 2))
    delta = bank.changed_since(mark)
    assert (delta.slots.tolist(), delta.version.tolist(), delta.fresh, delta.more) == ([3, 7], [2, 2], False, False)
    np.testing.assert_array_equal(delta.rows["rgb"], bank.views["rgb"][[3, 7]])
    assert bank.push(pushed(rng, [9], 0)).late == 1  # left out, so no mirror hears of it
    assert not bank.changed_since(delta.mark).slots.size


def test_of_a_large_change_the_oldest_writes_come_first_and_nothing_comes_twice():
    rng, bank = np.random.default_rng(0), EmbeddingBank(N, DIM, VIEWS)
    order = rng.permutation(N)
    for step, slot in enumerate(order):
        bank.push(pushed(rng, [slot], step))
    seen, mark, more = [], None, True
    while more:
        delta = bank.changed_since(mark, 7)
        assert delta.slots.tolist() == sorted(order[len(seen) : len(seen) + 7])
        seen += delta.slots.tolist()
        mark, more = delta.mark, delta.more
    assert sorted(seen) == list(range(N))


def test_a_mark_of_another_bank_begins_anew_and_leaves_nothing_of_it():
    rng = np.random.default_rng(0)
    former, bank, mirror = (EmbeddingBank(N, DIM, VIEWS) for _ in range(3))
    former.push(pushed(rng, np.arange(N), 5))
    mark, _ = follow(mirror, former, None, 16)
    bank.push(pushed(rng, [2, 4], 1))
    assert bank.changed_since(mark).fresh
    follow(mirror, bank, mark, 1)
    assert equal(mirror, bank)
    assert mirror.filled == 2


def test_a_mirror_of_another_shape_is_refused():
    delta = EmbeddingBank(N, DIM, VIEWS).changed_since(None)
    for other in (EmbeddingBank(N, DIM, VIEWS, dtype="float16"), EmbeddingBank(N, 5, VIEWS), EmbeddingBank(N, 4, "ab")):
        with pytest.raises(BankError, match="the views, the width and the dtype of the bank that it follows"):
            other.apply(delta)


def test_a_mirror_that_follows_while_others_write_never_holds_half_a_row_and_catches_up():
    bank, mirror = (EmbeddingBank(2000, DIM, VIEWS) for _ in range(2))
    stop = threading.Event()

    def write(seed):
        rng, step = np.random.default_rng(seed), 0
        while not stop.is_set():
            bank.push(pushed(rng, rng.integers(0, 2000, 50), step := step + 1))

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(2)]
    for writer in writers:
        writer.start()
    mark = None
    try:
        for _ in range(200):
            delta = bank.changed_since(mark, 300)
            mirror.apply(delta)
            mark = delta.mark
            lengths = np.linalg.norm(delta.rows["rgb"], axis=1)
            np.testing.assert_allclose(lengths, 1, atol=1e-5)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    follow(mirror, bank, mark, 300)
    assert equal(mirror, bank)
