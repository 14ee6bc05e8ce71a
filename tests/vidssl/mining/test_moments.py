"""A moment is the bank as it was when it was taken, whatever is written while it is read, and costs what it says."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vidssl.mining.pushes import VIEWS, pushed
from vidssl.batch import Embeddings
from vidssl.mining import moments
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.rows import DTYPES
from vidssl.mining.snapshots import load_snapshot, save_snapshot

N, DIM = 50, 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 8 rows and 3 at once, so that a small bank has many."""
    monkeypatch.setattr(moments, "BLOCK_ROWS", 8)
    monkeypatch.setattr(moments, "_ROWS_UNDER_LOCK", 3)
    monkeypatch.setattr(moments, "_PAUSE_S", 0)


def copied(bank):
    return {name: values.copy() for name, values in bank.state().items() if name != "group"}


def read(moment, between=lambda: None):
    found = {}
    for part, block in moment.blocks():
        for name, values in block.items():
            found.setdefault(name, []).append(values.copy())
        assert part.stop - part.start == len(block["version"])
        between()
    return {name: np.concatenate(parts) for name, parts in found.items()}


WRITES = st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=9), max_size=4)


@settings(max_examples=100, deadline=None)
@given(
    before=WRITES,
    opened=WRITES,
    between=st.lists(WRITES, min_size=7, max_size=7),
    dtype=st.sampled_from(DTYPES),
    rewinds=st.sets(st.integers(0, 6), max_size=1),
)
def test_a_moment_is_the_bank_as_it_was_whatever_is_written_meanwhile(before, opened, between, dtype, rewinds):
    rng, bank, step = np.random.default_rng(0), EmbeddingBank(N, DIM, VIEWS, dtype=dtype), iter(range(10_000))
    for slots in before:
        bank.push(pushed(rng, slots, next(step)))
    expected, last = copied(bank), bank.step
    with bank.moment() as moment:
        for slots in opened:
            bank.push(pushed(rng, slots, next(step)))
        todo = iter(enumerate(between))

        def write():
            number, pushes = next(todo)
            if number in rewinds:
                bank.rewind(1)
            for slots in pushes:
                bank.push(pushed(rng, slots, next(step)))

        found = read(moment, write)
    assert moment.facts.step == last
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_two_moments_at_once_are_each_of_their_own_time():
    rng, bank = np.random.default_rng(0), EmbeddingBank(N, DIM, VIEWS)
    bank.push(pushed(rng, np.arange(N), 0))
    first = copied(bank)
    with bank.moment() as one:
        bank.push(pushed(rng, np.arange(0, N, 2), 1))
        second = copied(bank)
        with bank.moment() as other:
            bank.push(pushed(rng, np.arange(N), 2))
            for moment, expected in ((one, first), (other, second)):
                for name, values in read(moment).items():
                    np.testing.assert_array_equal(values, expected[name])


def test_a_row_is_set_aside_once_only_before_it_is_read_and_forgotten_after():
    rng, bank = np.random.default_rng(0), EmbeddingBank(N, DIM, VIEWS)
    bank.push(pushed(rng, np.arange(N), 0))
    row = 8 + 8 + 2 * DIM * 4  # slot, version, two views
    with bank.moment() as moment:
        for step in (1, 2, 3):
            bank.push(pushed(rng, np.arange(20), step))
        assert moment.kept_rows == 20
        assert moment.most_bytes == 20 * row
        blocks = moment.blocks()
        for _ in range(3):
            next(blocks)
        bank.push(pushed(rng, np.arange(N), 4))  # three blocks of eight are read: rows 24.. are set aside
        assert moment.kept_rows == 20 + N - 24
        assert moment.most_bytes <= 8 * (row - 8) + (N - 24) * row
    bank.push(pushed(rng, np.arange(N), 5))
    assert moment.kept_rows == 20 + N - 24  # it is closed


def test_a_snapshot_written_while_others_push_is_of_one_moment(tmp_path):
    """Pushes overwrite the whole bank with one number after the other: any mixture would show."""
    bank, stop = EmbeddingBank(N, DIM, VIEWS), threading.Event()

    def write(step):
        rows = np.zeros((N, DIM), np.float32)
        rows[:, step % DIM] = 1
        bank.push(Embeddings(dict.fromkeys(VIEWS, rows), np.arange(N), step, 0))

    def go_on():
        step = 0
        while not stop.is_set():
            write(step := step + 1)
            time.sleep(5e-4)

    write(0)
    writer = threading.Thread(target=go_on)
    writer.start()
    seen = set()
    try:
        for number in range(6):
            back = load_snapshot(save_snapshot(bank, tmp_path, number))
            assert set(back.version.tolist()) == {back.step}
            for view in VIEWS:
                assert (back.views[view][:, back.step % DIM] == 1).all()
            seen.add(back.step)
    finally:
        stop.set()
        writer.join()
    assert len(seen) > 3
