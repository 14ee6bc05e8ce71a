"""The ring queue against a deque that is pushed row by row, at any batch size."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.errors import RecipeError
from vidssl.queue import RingQueue


def a_push(size, first):
    ids = torch.arange(first, first + size)
    rows = torch.stack([ids.float(), -ids.float()], dim=1)
    return {"a": rows, "b": 10 * rows}, ids, ids // 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 30), max_size=12))
def test_queue_holds_what_a_deque_of_rows_holds_and_where_a_ring_puts_it(size, pushes):
    queue, oracle, first = RingQueue(("a", "b"), size, 2), deque(maxlen=size), 0
    place = [-1] * size
    for count in pushes:
        rows, ids, group = a_push(count, first)
        queue.push(rows, ids, group, ids % 5)
        for value in ids.tolist():
            oracle.append(value)
            place[value % size] = value  # row-by-row ring
        first += count
    assert sorted(i for i in queue.instance.tolist() if i >= 0) == list(oracle)
    assert queue.instance.tolist() == place
    assert queue.group.tolist() == [i // 3 if i >= 0 else -1 for i in place]
    assert queue.written.tolist() == [i >= 0 for i in place]
    assert int(queue.pointer) == first % size
    for slot, value in enumerate(place):
        if value >= 0:
            assert queue.label[slot] == value % 5
            assert queue.rows("a")[slot].tolist() == [value, -value]
            assert queue.rows("b")[slot].tolist() == [10 * value, -10 * value]


def test_new_queue_is_unit_rows_that_count_as_nothing():
    queue = RingQueue(("a",), 7, 5)
    torch.testing.assert_close(queue.rows("a").norm(dim=1), torch.ones(7))
    assert queue.filled() == 0
    assert not queue.ready()
    assert not queue.same_source(torch.tensor([-1, 0]), torch.tensor([-1, 0])).any()


def test_mining_is_ready_after_exactly_as_many_rows_as_slots_and_again_after_forgetting():
    queue, first = RingQueue(("a", "b"), 10, 2), 0
    for ready in (False, False, True):
        queue.push(*a_push(4, first))
        first += 4
        assert queue.ready() is ready
    queue.forget_minable()
    assert queue.filled() == 1
    for ready in (False, False, True):
        queue.push(*a_push(4, first))
        first += 4
        assert queue.ready() is ready


def test_same_source_is_own_instance_or_own_group():
    queue = RingQueue(("a", "b"), 4, 2)
    rows, _, _ = a_push(3, 0)
    queue.push(rows, torch.tensor([5, 6, 7]), torch.tensor([1, 1, -1]))
    alike = queue.same_source(torch.tensor([5, 8, 7, 9]), torch.tensor([2, 1, -1, -1]))
    assert alike.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, False],
    ]


def test_labels_are_kept_only_where_told_and_unknown_ones_match_nothing():
    queue = RingQueue(("a", "b"), 4, 2)
    rows, ids, group = a_push(3, 0)
    queue.push(rows, ids, group, torch.tensor([2, -1, 5]))
    asked = torch.tensor([2, 5, -1, 7])
    assert queue.same_label(asked).nonzero().tolist() == [[0, 0], [1, 2]]
    assert not queue.full()
    queue.push(*a_push(2, 3))  # slots 3 and 0, without labels
    assert queue.label.tolist() == [-1, -1, 5, -1]
    assert queue.same_label(asked).nonzero().tolist() == [[1, 2]]
    assert queue.full()


def test_state_dict_continues_the_ring():
    queue = RingQueue(("a", "b"), 5, 2)
    queue.push(*a_push(3, 0))
    other = RingQueue(("a", "b"), 5, 2)
    other.load_state_dict(queue.state_dict())
    for ring in (queue, other):
        ring.push(*a_push(4, 3))
    for name, buffer in queue.state_dict().items():
        assert torch.equal(buffer, other.state_dict()[name]), name


def test_wrong_views_and_sizes_are_refused():
    with pytest.raises(RecipeError, match=r"method\.queue=0: the queue needs at least one slot"):
        RingQueue(("a",), 0, 2)
    rows, ids, group = a_push(2, 0)
    with pytest.raises(RecipeError, match="the queue holds the views a, a push brought a, b"):
        RingQueue(("a",), 4, 2).push(rows, ids, group)
