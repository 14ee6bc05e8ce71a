"""The table of positives: the newest entry of a video stays, what is asked for is exactly what is newer and not too old."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.bank.table import NEVER, Pace, PositiveTable
from vidssl.batch import Positives
from vidssl.errors import BankError

N = 9


def found(at, ids):
    """Positives that say when they were mined, so that a torn row shows."""
    mined_at, ids = np.array(at, np.int64), np.array(ids, np.int64).reshape(-1, 1)
    return Positives(np.repeat(ids, 2, 1), np.zeros((len(ids), 2, 1), np.float32), mined_at, ids + 1)


rows = st.lists(st.tuples(st.integers(0, N - 1), st.integers(-1, 20), st.integers(0, N - 1)), max_size=6)
questions = st.lists(st.tuples(st.integers(0, N - 1), st.integers(-1, 20), st.integers(0, 20)), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(rows.map(lambda given: ("keep", given)), questions.map(lambda given: ("ask", given)))))
def test_the_table_holds_what_a_plain_dictionary_would(moves):
    table, plain = PositiveTable(N, 2, 1), {}
    for name, given_rows in moves:
        columns = [np.array(one, np.int64) for one in zip(*given_rows, strict=True)] or [np.zeros(0, np.int64)] * 3
        if name == "keep":
            slots, first = np.unique(columns[0], return_index=True)
            at, ids = columns[1][first], columns[2][first]
            kept = table.keep(slots, found(at, ids))
            new = [row for row in range(len(slots)) if at[row] >= 0 and at[row] >= plain.get(slots[row], (-1, 0))[0]]
            plain.update({slots[row]: (at[row], ids[row]) for row in new})
            assert kept == len(new)
        else:
            slots, have, oldest = columns
            entries = table.newer(slots, have, oldest)
            known = [plain.get(slot, (-1, 0)) for slot in slots]
            wanted = [row for row, (at, _) in enumerate(known) if at > have[row] and at >= oldest[row]]
            assert entries.place.tolist() == wanted
            assert entries.mined_at.tolist() == [known[row][0] for row in wanted]
            assert entries.ids.tolist() == [[known[row][1]] * 2 for row in wanted]
            assert entries.survivors.tolist() == [[known[row][1] + 1] for row in wanted]


def test_urgency_counts_whole_epochs_at_the_step_that_needs_the_row():
    table = PositiveTable(N, 2, 1)
    table.keep(np.arange(3), found([4, 10, 19], [0, 0, 0]))
    assert table.urgency(np.arange(4), 20, 8).tolist() == [2, 1, 0, NEVER]


def test_videos_outside_the_table_are_refused():
    table, none = PositiveTable(N, 2, 1), np.zeros(2, np.int64)
    with pytest.raises(BankError, match=r"instance ids 3\.\.9 do not fit a bank of 9 slots"):
        table.newer(np.array([3, 9]), none, none)


def test_a_new_attempt_inherits_what_names_only_videos_that_have_rows():
    old, new = PositiveTable(N, 2, 1), PositiveTable(N, 2, 1)
    old.keep(np.arange(3), found([4, 9, 9], [5, 6, 7]))
    new.inherit(old, 8, np.arange(N) != 6)
    assert new.mined_at(np.arange(4)).tolist() == [4, -1, 7, -1]


def test_positives_may_be_an_epoch_old_or_as_old_as_the_miners_need_to_come_round():
    keeping_up, slow = Pace(10), Pace(10)
    for step in range(100):
        keeping_up.mined(8, step, 80)
        slow.mined(2, step, 80)
    assert keeping_up.bound(100) == 10
    assert slow.bound(100) == pytest.approx(4 * 10 + 20, abs=2)
    assert slow.bound(slow._began + 100) == 100 + 20  # slower than the last time round
    assert slow.bound(slow._began + 9000) == pytest.approx(4 * 40 + 20, abs=8)  # or dead
    slow.mined(80, slow._began + 9, 80)  # much faster now: what the slow pass left is replaced by the next one only
    assert slow.bound(slow._began) == pytest.approx(4 * 10 + 20, abs=2)
    slow.mined(80, slow._began + 9, 80)
    assert slow.bound(slow._began) == 10
    first = Pace(10)
    assert first.bound(5) == 10
    first.mined(2, 0, 80)
    assert first.bound(25) == 45  # the first time round is not over
