from __future__ import annotations

import threading
import time

import pytest

from pipelines.loading.prefetch import Prefetched


def test_items_come_in_order_and_then_it_ends_for_good():
    ahead = Prefetched(lambda: iter(range(50)), 3, "t")
    assert list(ahead) == list(range(50))
    assert list(ahead) == []


def test_no_more_than_depth_items_and_the_one_in_hand_are_made_ahead():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    ahead = Prefetched(items, 2, "t")
    time.sleep(0.3)
    assert len(made) == 3
    ahead.close()


def test_an_exception_reaches_the_next_that_would_have_had_the_item_as_itself():
    class Odd(Exception):
        pass

    error = Odd("seven")

    def items():
        yield 1
        raise error

    ahead = Prefetched(items, 4, "t")
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(Odd) as caught:
            next(ahead)
        assert caught.value is error


def test_close_ends_the_thread_even_when_nobody_takes_and_closes_the_generator():
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    ahead = Prefetched(items, 1, "reader-of-this-test")
    time.sleep(0.05)
    ahead.close()
    ahead.close()
    assert closed == ["reader-of-this-test"]
    assert "reader-of-this-test" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(StopIteration):
        next(ahead)
