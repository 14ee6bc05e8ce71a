from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.packing.timeline import Stamps, Timeline, nominal_step

STEP = Fraction(1, 25)


def slots(clock: Timeline, stamps: list[Fraction | None]) -> list[int]:
    return [clock.slot(stamp) for stamp in stamps]


@given(st.integers(1, 120), st.integers(-1000, 1000))
@settings(max_examples=30, deadline=None)
def test_frames_of_the_wanted_rate_keep_their_numbers_wherever_the_clock_starts(fps, start):
    clock = Timeline(Fraction(fps), Fraction(1, fps))
    assert slots(clock, [Fraction(start + i, fps) for i in range(40)]) == list(range(40))
    assert clock.end() == 40
    assert (clock.missing, clock.jumps) == (0, 0)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_each_slot_shows_the_last_frame_that_has_begun_half_a_slot_later(gaps_ms):
    times = [Fraction(sum(gaps_ms[:i]), 1000) for i in range(len(gaps_ms))]
    clock = Timeline(Fraction(25), STEP)
    starts = slots(clock, list(times))
    shown: list[int] = []
    for number, (begin, stop) in enumerate(zip(starts, [*starts[1:], clock.end()], strict=True)):
        shown += [number] * (stop - begin)
    by_hand = [max(i for i, t in enumerate(times) if t <= STEP * j + STEP / 2) for j in range(len(shown))]
    assert shown[:-1] == by_hand[:-1]
    assert shown[-1] == len(times) - 1


@given(st.lists(st.one_of(st.none(), st.fractions(-50, 50, max_denominator=90)), max_size=40))
@settings(max_examples=80, deadline=None)
def test_time_never_runs_back_whatever_the_stamps(stamps):
    clock = Timeline(Fraction(25), STEP)
    found = slots(clock, stamps)
    assert found == sorted(found)
    assert clock.end() > found[-1] if found else clock.end() == 0
    assert clock.missing == stamps.count(None)


def test_frames_without_stamps_follow_at_the_nominal_distance_and_are_counted():
    clock = Timeline(Fraction(25), Fraction(1, 5))
    assert slots(clock, [None, None, None]) == [0, 5, 10]
    assert clock.missing == 3


def test_a_leap_of_the_clock_is_one_step_and_the_new_clock_counts_on():
    clock = Timeline(Fraction(25), STEP)
    assert slots(clock, [Fraction(0), STEP, Fraction(5000), Fraction(5000) + STEP]) == [0, 1, 2, 3]
    assert clock.jumps == 1


def test_a_still_picture_of_nine_seconds_is_kept():
    assert slots(Timeline(Fraction(25), STEP), [Fraction(0), Fraction(9)]) == [0, 225]


def test_presentation_times_are_trusted_while_they_run_evenly():
    choose = Stamps().choose
    assert [choose(pts, pts - 1) for pts in (1, 2, 4, 7)] == [1, 2, 4, 7]


def test_decoding_times_take_over_when_presentation_times_go_back():
    choose = Stamps().choose
    swapped = [(1, 1), (2, 2), (4, 3), (3, 4), (5, 5), (7, 6), (6, 7), (8, 8)]
    assert [choose(*pair) for pair in swapped][3:] == [4, 5, 6, 7, 8]


def test_the_nominal_step_comes_from_the_first_sound_rate():
    assert nominal_step(None, Fraction(1000), Fraction(30)) == Fraction(1, 30)
    assert nominal_step(None, Fraction(0)) == Fraction(1, 25)
