"""The learning rate: shape of every schedule, and that it needs nothing but the step."""

import pytest

from vidssl.errors import RecipeError
from vidssl.recipe import Optim
from vidssl.schedule import learning_rate


def rates(total=100, **kwargs):
    optim = Optim(lr=0.5, **kwargs)
    return [learning_rate(optim, step, total) for step in range(total)]


def test_warm_up_grows_linearly_and_meets_the_peak():
    for schedule in ("constant", "cosine", "step"):
        found = rates(schedule=schedule, warmup_steps=10)
        assert found[:11] == pytest.approx([0.05 * (i + 1) for i in range(10)] + [0.5])


def test_constant_stays():
    assert set(rates(schedule="constant")) == {0.5}


def test_cosine_falls_from_the_peak_through_half_of_it_towards_zero():
    found = rates(schedule="cosine")
    assert found[0] == 0.5
    assert found[50] == pytest.approx(0.25)
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < 0.001


def test_step_divides_by_ten_at_each_milestone():
    found = rates(schedule="step", milestones=(0.5, 0.8))
    assert found == pytest.approx([0.5] * 50 + [0.05] * 30 + [0.005] * 20)


def test_steps_behind_the_end_keep_the_last_rate():
    optim = Optim(schedule="cosine")
    assert learning_rate(optim, 500, 100) == learning_rate(optim, 99, 100)


def test_a_schedule_stands_where_its_samples_are_and_a_warm_up_counts_steps():
    """100 steps of 8 videos are 200 of 4: a run that changes after 50 goes on at half of the way and of the rate."""
    for schedule in ("constant", "cosine", "step"):
        optim = Optim(lr=0.5, schedule=schedule, milestones=(0.4, 0.6))
        for done in (0, 50, 60):
            assert learning_rate(optim, done, 200, at=2.0 * done) == learning_rate(optim, done, 100)
    warm = Optim(lr=0.5, schedule="cosine", warmup_steps=10)
    assert learning_rate(warm, 4, 200, at=20.0) == learning_rate(warm, 4, 100)
    assert learning_rate(warm, 10, 50, at=5.0) == 0.5
    assert learning_rate(warm, 30, 100, at=30.0) == learning_rate(warm, 30, 100)


def test_impossible_runs_are_refused():
    with pytest.raises(RecipeError, match=r"optim\.warmup_steps=20 fills the run of 20 steps"):
        learning_rate(Optim(warmup_steps=20), 0, 20)
    with pytest.raises(RecipeError, match="step -1 of 20"):
        learning_rate(Optim(), -1, 20)
