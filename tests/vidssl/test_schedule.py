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


def test_impossible_runs_are_refused():
    with pytest.raises(RecipeError, match=r"optim\.warmup_steps=20 fills the run of 20 steps"):
        learning_rate(Optim(warmup_steps=20), 0, 20)
    with pytest.raises(RecipeError, match="step -1 of 20"):
        learning_rate(Optim(), -1, 20)
