"""Which points a sweep tries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.sweep.space import Point, Space, default_pools, read_space, search_points
from vidssl.errors import RecipeError
from vidssl.mining.cascade import mine
from vidssl.mining.exclusions import GroupIndex
from vidssl.recipe import Mining

spaces = st.builds(
    Space,
    stages=st.lists(st.sampled_from([1, 3, 5, 7, 9]), min_size=1, max_size=4).map(tuple),
    pools=st.none() | st.lists(st.integers(1, 200), min_size=1, max_size=5).map(tuple),
    topk=st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple),
    trials=st.none() | st.integers(1, 30),
    seed=st.integers(0, 3),
)


def attempt(space: Space, n_slots: int) -> list[Point]:
    try:
        return search_points(space, n_slots, Mining())
    except RecipeError:  # all pools below k; what is refused, and how, is tested below
        return []


@settings(max_examples=60, deadline=None)
@given(space=spaces, n_slots=st.integers(25, 400))
def test_every_point_is_feasible_and_none_comes_twice(space, n_slots):
    points = attempt(space, n_slots)
    assert len(set(points)) == len(points)
    for point in points:
        plan = point.plan(n_slots, "main")
        assert plan.last_pool == point.pool
        assert point.topk <= point.pool <= n_slots


@settings(max_examples=60, deadline=None)
@given(space=spaces, n_slots=st.integers(25, 400))
def test_single_and_sum_are_tried_once_per_k_whatever_is_asked_for(space, n_slots):
    points = attempt(space, n_slots)
    for k in {point.topk for point in points}:
        for rival in ("single", "sum"):
            assert points.count(Point(rival, 1, n_slots, k)) == 1
    assert not points or {point.topk for point in points} == set(space.topk)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99))
def test_no_two_points_of_a_grid_mine_the_same_ids_on_random_banks_of_any_size(seed):
    rng = np.random.default_rng(seed)
    n_slots = 60
    bank = [rng.normal(size=(n_slots, 16)).astype(np.float32) for _ in range(2)]
    space = Space(stages=(1, 3, 5), pools=(6, 20, 60), topk=(6,), rivals=("single", "sum", "minrank"))
    exclude = GroupIndex(np.arange(n_slots)).exclusions(np.arange(n_slots))
    seen: dict[bytes, Point] = {}
    for point in search_points(space, n_slots, Mining()):
        ids = mine(bank, bank, point.plan(n_slots, "main"), exclude=exclude).ids
        assert seen.setdefault(ids.tobytes(), point) is point


def test_a_pool_of_the_whole_bank_is_the_single_rival_and_is_left_out():
    points = search_points(Space(stages=(3, 5), pools=(50,), topk=(5,)), 50, Mining())
    assert points == [Point("single", 1, 50, 5), Point("sum", 1, 50, 5)]


def test_an_even_number_of_stages_is_refused_unless_the_views_alternate():
    with pytest.raises(
        RecipeError, match=r"mining.stages=4 with mining.last_view=main mines what 3 .* type mining.stages=5"
    ):
        search_points(Space(stages=(1, 4)), 200, Mining())
    points = search_points(Space(stages=(4,), pools=(20,)), 200, Mining(last_view="alternate"))
    assert Point("cascade", 4, 20, 5) in points


def test_more_trials_extend_fewer_ones():
    few, more = (search_points(Space(trials=trials, topk=(1, 5)), 500, Mining()) for trials in (12, 20))
    assert few == more[:12]
    assert len(more) == 20


def test_default_pools_reach_from_just_above_k_to_half_the_bank():
    pools = default_pools([5, 10], 2048)
    assert (pools[0], pools[-1], len(pools)) == (6, 1024, 8)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["stages=[1,3"], r"stages=\[1,3 cannot be read; lists are written stages=\[1,3,5\]"),
        (["stages=[0]"], r"stages=\[0\]: input should be greater than or equal to 1"),
        (["stagse=[1]"], r"unknown key 'stagse' of a sweep; there are stages, pools"),
        (["deep"], r"'deep' is no setting; type key=value"),
        (["metric=accuracy"], r"metric='accuracy': input should be 'precision_at_k'"),
    ],
)
def test_wrong_words_are_refused_in_one_sentence(words, sentence):
    with pytest.raises(RecipeError, match=sentence):
        read_space(words)


def test_dotted_words_belong_to_the_recipe_and_one_number_is_a_list():
    space, of_recipe = read_space(["topk=5", "mining.last_view=alternate", "run=runs/a"])
    assert (space.topk, space.run, of_recipe) == ((5,), "runs/a", ["mining.last_view=alternate"])


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (Space(topk=(5, 60)), r"topk=60 of 50 filled slots: give topk=\[…\] below 50"),
        (Space(pools=(2, 70), topk=(5,)), r"pools=\[2, 70\]: no pool lies between topk=5 and the 50 filled slots"),
    ],
)
def test_what_this_bank_cannot_serve_is_refused(space, sentence):
    with pytest.raises(RecipeError, match=sentence):
        search_points(space, 50, Mining())
