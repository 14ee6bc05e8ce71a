"""What is mined next: against a slow oracle that sorts everything anew, and what follows from it for rows and ranks."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.bank.requests import LATE, Requests
from cluster.bank.table import NEVER, Pace, PositiveTable
from vidssl.batch import Positives

N, RANKS = 12, 3


class Slow:
    """The same by definition: one list of (rank, step, urgency, row), searched through every time."""

    def __init__(self):
        self.rows, self.late, self.cursor = [], set(), 0
        self.newest, self.noted, self.served = [-1] * RANKS, [-1] * RANKS, [0] * RANKS

    def come(self, rank, step):
        self.newest[rank] = max(self.newest[rank], step)
        over = [one for one in self.rows if one[0] == rank and one[1] <= self.newest[rank] + 1]
        self.rows = [one for one in self.rows if one not in over]
        self.late |= {one[3] for one in over}

    def note(self, rank, step, ids, urgency):
        if step <= max(self.noted[rank], self.newest[rank] + 1):
            return
        self.noted[rank] = step
        self.rows += [(rank, step, int(one), int(row)) for one, row in zip(urgency, ids, strict=True)]
        self.late -= set(ids.tolist())

    def take(self, room):
        taken = []
        while self.rows and len(taken) < room:
            first = min(self.rows, key=lambda one: (-one[2], one[1], self.served[one[0]], one[0]))
            group = [one for one in self.rows if one[:3] == first[:3]][: room - len(taken)]
            self.served[first[0]] += len(group)
            self.rows = [one for one in self.rows if one not in group]
            taken += group
        if taken or not self.late:
            return taken
        rows = [row for row in sorted(self.late) if row >= self.cursor][:room] or sorted(self.late)[:room]
        self.cursor, self.late = rows[-1] + 1, self.late - set(rows)
        return [(LATE, LATE, 0, row) for row in rows]


moves = st.one_of(
    st.tuples(st.just("take"), st.integers(1, 6)),
    st.tuples(st.just("come"), st.integers(0, RANKS - 1), st.integers(0, 8)),
    st.tuples(
        st.just("note"),
        st.integers(0, RANKS - 1),
        st.integers(0, 10),
        st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, 3)), max_size=5, unique_by=lambda pair: pair[0]),
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(moves, max_size=30))
def test_the_order_of_mining_is_that_of_the_slow_oracle(given_moves):
    fast, slow = Requests(N), Slow()
    for name, *words in given_moves:
        if name == "take":
            taken = fast.take(words[0], timeout_s=0)
            rows = [(part.rank, part.step, part.urgency, row) for part in taken for row in part.ids.tolist()]
            assert rows == slow.take(words[0])
        elif name == "come":
            fast.come(*words)
            slow.come(*words)
        else:
            rank, step, pairs = words
            ids, urgency = (np.array([pair[place] for pair in pairs], np.int64) for place in (0, 1))
            assert fast.is_new(rank, step) == (step > max(slow.noted[rank], slow.newest[rank] + 1))
            fast.note(rank, step, ids, urgency)
            slow.note(rank, step, ids, urgency)
        assert fast.counts() == (len(slow.rows), len(slow.late))


def ids(*rows):
    return np.array(rows, np.int64)


def test_a_late_row_is_mined_once_nothing_is_needed_sooner():
    requests = Requests(N)
    requests.note(0, 3, ids(1, 2), ids(0, 0))
    requests.come(0, 2)
    requests.note(0, 5, ids(4), ids(0))
    assert [part.ids.tolist() for part in requests.take(8)] == [[4]]
    (late,) = requests.take(8)
    assert (late.rank, late.ids.tolist()) == (LATE, [1, 2])


def test_rows_of_a_miner_that_died_are_taken_again_and_late_ones_kept():
    requests = Requests(N)
    requests.note(0, 3, ids(1, 2), ids(0, 0))
    requests.note(1, 3, ids(5), ids(0))
    taken = requests.take(8)
    requests.come(1, 2)
    requests.again(taken)
    assert [(part.rank, part.ids.tolist()) for part in requests.take(8)] == [(0, [1, 2])]
    assert [(part.rank, part.ids.tolist()) for part in requests.take(8)] == [(LATE, [5])]


def test_who_waits_for_work_wakes_for_a_row_and_for_the_end():
    requests, taken = Requests(N), []
    for end in (lambda: requests.note(0, 9, ids(7), ids(0)), requests.close):
        thread = threading.Thread(target=lambda: taken.append(requests.take(4)))
        thread.start()
        end()
        thread.join(10)
        assert not thread.is_alive()
    assert [[part.ids.tolist() for part in parts] for parts in taken] == [[[7]], []]


def trained(load, epochs=16, n_slots=480, world=4, batch=6, lookahead=2):
    """A training whose miners do one `load`-th of what is needed. Per step: rank → (ages of its rows, rows without)."""
    requests, table = Requests(n_slots), PositiveTable(n_slots, 1, 1)
    epoch = n_slots // (world * batch)
    pace, used, credit = Pace(epoch), [], 0.0
    order = np.concatenate([np.random.default_rng(one).permutation(n_slots) for one in range(epochs + 1)])
    for step in range(epochs * epoch):
        answers = {}
        for rank in range(world):
            rows = lambda at, rank=rank: order[(at * world + rank) * batch : (at * world + rank + 1) * batch]  # noqa: E731
            have = np.full(batch, -1)
            found = table.newer(rows(step), have, have + 1 + step - pace.bound(step))
            answers[rank] = (step - found.mined_at, batch - len(found.place))
            requests.come(rank, step)
            soon = rows(step + lookahead + 1)
            requests.note(rank, step + lookahead + 1, soon, table.urgency(soon, step + lookahead + 1, epoch))
        used.append(answers)
        credit += world * batch / load
        while credit >= 1 and (parts := requests.take(int(credit), timeout_s=0)):
            mined = np.concatenate([part.ids for part in parts])
            credit -= len(mined)
            kept = table.keep(mined, Positives(mined[:, None], np.zeros(0), np.full(len(mined), step), mined[:, None]))
            assert kept == len(mined)  # nothing that was mined is thrown away
            pace.mined(kept, step, n_slots)
    return used, epoch


def test_with_half_the_load_every_row_is_fresh():
    used, epoch = trained(0.5)
    late = used[epoch:]
    assert sum(missing for answers in late for _, missing in answers.values()) == 0
    assert max(ages.max() for answers in late for ages, _ in answers.values()) <= 3


@pytest.mark.parametrize("load", [2, 4])
def test_with_several_times_the_load_rows_grow_older_and_none_is_left_without(load):
    used, epoch = trained(load, epochs=4 * load)
    late = used[(load + 1) * epoch :]
    missing = [sum(answers[rank][1] for answers in late) for rank in range(4)]
    ages = [np.concatenate([answers[rank][0] for answers in late]) for rank in range(4)]
    assert sum(missing) <= 0.01 * sum(map(len, ages))
    means = [one.mean() for one in ages]
    assert max(means) <= 1.2 * min(means)  # ranks are served alike
    assert np.percentile(np.concatenate(ages), 99) <= (load + 1) * epoch


def test_a_slow_rank_is_not_starved_and_equal_deadlines_alternate():
    requests = Requests(1000)
    mined = dict.fromkeys(range(3), 0)
    for step in range(60):
        for rank in range(3):
            at = step // 4 if rank == 2 else step  # rank 2 trains at a quarter of the speed
            requests.come(rank, at)
            rows = np.arange(4) + 4 * (rank + 3 * at) % 900
            requests.note(rank, at + 3, rows, np.full(4, NEVER))
        for part in requests.take(4):
            mined[part.rank] += len(part.ids)
    assert mined[2] >= 0.8 * 4 * 15  # all that it asked for
    assert max(mined[0], mined[1]) <= 1.2 * min(mined[0], mined[1])
