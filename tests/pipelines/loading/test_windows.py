from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.loading.chance import Purpose, uniforms
from pipelines.loading.windows import drawn_starts, span_of, spread_starts

quick = settings(max_examples=40, deadline=None)


@quick
@given(st.integers(1, 80), st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 9))
def test_a_drawn_window_lies_inside_its_video_or_starts_a_short_one(frames, span, seed, epoch):
    starts = drawn_starts(np.full(20, frames), span, 2, seed=seed, epoch=epoch, instance=np.arange(20))
    assert starts.shape == (20, 2)
    assert (starts >= 0).all()
    assert (starts <= max(frames - span, 0)).all()


def test_every_possible_start_is_equally_likely_the_last_one_included():
    starts = drawn_starts(np.full(6000, 20), 15, 2, seed=3, epoch=0, instance=np.arange(6000))
    counts = np.bincount(starts.ravel(), minlength=6)
    assert len(counts) == 6
    assert (np.abs(counts - 2000) < 5 * np.sqrt(2000)).all()


def test_a_start_depends_on_its_address_alone():
    frames, ids = np.array([50, 60, 70, 80]), np.array([9, 4, 7, 123456])
    address = {"seed": 5, "epoch": 2}
    together = drawn_starts(frames, 8, 3, instance=ids, **address)
    alone = np.concatenate(
        [drawn_starts(frames[i : i + 1], 8, 3, instance=ids[i : i + 1], **address) for i in range(4)]
    )
    fewer = drawn_starts(frames, 8, 2, instance=ids, **address)
    assert np.array_equal(together, alone)
    assert np.array_equal(together[:, :2], fewer)
    for change in ({"seed": 6, "epoch": 2}, {"seed": 5, "epoch": 3}):
        assert not np.array_equal(together, drawn_starts(frames, 8, 3, instance=ids, **change))


def test_purposes_and_instances_share_no_numbers():
    ids = np.arange(500)
    drawn = [uniforms(0, 0, ids, (4,), purpose).ravel() for purpose in Purpose]
    assert len(np.unique(np.concatenate(drawn))) == sum(map(len, drawn))


def test_few_windows_are_those_of_the_published_retrieval():
    assert spread_starts(64, 32, 1, 99).tolist() == [0, 15, 30]
    assert len(spread_starts(300, 32, 1, 99)) == 18


@quick
@given(st.integers(1, 400), st.integers(1, 32), st.integers(1, 4), st.integers(1, 12))
def test_evaluation_windows_are_distinct_ascending_and_inside(video, frames, stride, windows):
    starts = spread_starts(video, frames, stride, windows)
    room = max(video - span_of(frames, stride), 0)
    assert 1 <= len(starts) <= windows
    assert (np.diff(starts) > 0).all()
    assert starts.min() >= 0
    assert starts.max() <= room
    if len(starts) == windows > 1 and room // max(frames * stride // 2 - 1, 1) + 1 > windows:
        assert (starts[0], starts[-1]) == (0, room)  # spread from end to end


def test_one_window_stands_in_the_centre_and_a_short_video_has_one():
    assert spread_starts(101, 16, 1, 1).tolist() == [42]
    assert spread_starts(10, 16, 1, 5).tolist() == [0]
