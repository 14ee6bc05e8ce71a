"""Which points `vidssl mine` and `vidssl sweep` try."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.mine.words import (
    METRICS,
    SPACES,
    MineWords,
    Point,
    Search,
    SweepWords,
    default_pools,
    own_point,
    read_search,
    reference_points,
    search_points,
)
from vidssl.errors import RecipeError
from vidssl.mining.cascade import mine
from vidssl.mining.exclusions import GroupIndex
from vidssl.recipe import Mining

spaces = st.builds(
    Search,
    stages=st.lists(st.sampled_from([1, 3, 5, 7, 9]), min_size=1, max_size=4).map(tuple),
    pools=st.none() | st.lists(st.integers(1, 200), min_size=1, max_size=5).map(tuple),
    topk=st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple),
    trials=st.none() | st.integers(1, 30),
    seed=st.integers(0, 3),
)


def attempt(space: Search, n_slots: int) -> list[Point]:
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
    space = Search(stages=(1, 3, 5), pools=(6, 20, 60), topk=(6,), spaces=("raw",))
    exclude = GroupIndex(np.arange(n_slots)).exclusions(np.arange(n_slots))
    seen: dict[bytes, Point] = {}
    for point in search_points(space, n_slots, Mining()):
        ids = mine(bank, bank, point.plan(n_slots, "main"), exclude=exclude).ids
        assert seen.setdefault(ids.tobytes(), point) is point


def test_a_pool_of_the_whole_bank_is_the_single_rival_and_is_left_out():
    points = search_points(Search(stages=(3, 5), pools=(50,), topk=(5,), rivals=(), spaces=("raw",)), 50, Mining())
    assert points == [Point("single", 1, 50, 5), Point("sum", 1, 50, 5)]


def test_an_even_number_of_stages_is_refused_unless_the_views_alternate():
    with pytest.raises(
        RecipeError, match=r"mining.stages=4 with mining.last_view=main mines what 3 .* type mining.stages=5"
    ):
        search_points(Search(stages=(1, 4)), 200, Mining())
    points = search_points(Search(stages=(4,), pools=(20,)), 200, Mining(last_view="alternate"))
    assert Point("cascade", 4, 20, 5) in points


def test_every_space_has_the_same_points():
    points = search_points(Search(stages=(3, 5), topk=(1, 5)), 500, Mining())
    by = {space: [replace(point, space="raw") for point in points if point.space == space] for space in SPACES}
    assert by["raw"] == by["white"] == by["canonical"]


def test_more_trials_extend_fewer_ones():
    few, more = (
        search_points(Search(trials=trials, topk=(1, 5), spaces=("raw",)), 500, Mining()) for trials in (12, 20)
    )
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
        (["metric=agreement"], r"metric=agreement is refused: without labels it misleads, so it stands in the table"),
        (["topk=[]"], r"topk=\[\]: tuple should have at least 1 item"),
        (["spaces=[raw,blue]"], r"spaces=\['raw', 'blue'\]: input should be 'raw'"),
        (["stages=true"], r"stages=True: "),
    ],
)
def test_wrong_words_are_refused_in_one_sentence(words, sentence):
    with pytest.raises(RecipeError, match=sentence):
        read_search(SweepWords, words, "sweep")


def test_dotted_words_belong_to_the_recipe_and_one_number_is_a_list():
    words = ["topk=5", "mining.last_view=alternate", "run=runs/a"]
    search, of_recipe = read_search(SweepWords, words, "sweep")
    assert (search.topk, search.run, of_recipe) == ((5,), "runs/a", ["mining.last_view=alternate"])


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (Search(topk=(5, 60)), r"topk=60 of 50 filled slots: give topk=\[…\] below 50"),
        (Search(pools=(2, 70), topk=(5,)), r"pools=\[2, 70\]: no pool lies between topk=5 and the 50 filled slots"),
    ],
)
def test_what_this_bank_cannot_serve_is_refused(space, sentence):
    with pytest.raises(RecipeError, match=sentence):
        search_points(space, 50, Mining())


def test_one_view_leaves_plain_top_k_and_no_aux_view_to_stand_beside_it():
    assert search_points(Search(topk=(3, 5), spaces=("raw",)), 50, Mining(), views=1) == [
        Point("single", 1, 50, 3),
        Point("single", 1, 50, 5),
    ]
    names = [point.strategy for point in reference_points(Search(topk=(5,)), 50, Mining(), views=1, labelled=True)]
    assert names == ["random", "oracle"]


def test_the_oracle_is_asked_only_where_labels_are_known():
    names = [point.strategy for point in reference_points(Search(), 50, Mining(), views=2, labelled=False)]
    assert names == ["aux", "aux", "aux", "random"]  # in each space, and lots in none


def test_what_the_run_itself_mines_with_is_a_point_of_this_bank():
    assert own_point(Mining(stages=3, pool=20, topk=5), 200, "raw") == Point("cascade", 3, 20, 5)
    assert own_point(Mining(stages=7, ratio=0.5, topk=5), 9537, "raw") == Point("cascade", 7, 149, 5)
    assert own_point(Mining(strategy="sum", topk=5), 200, "raw") == Point("sum", 1, 200, 5)
    assert own_point(Mining(stages=1, topk=5), 200, "raw") == Point("single", 1, 200, 5)
    assert own_point(Mining(stages=7, ratio=0.5, topk=5), 100, "raw") is None  # one candidate would be left for five
    assert own_point(Mining(strategy="oracle"), 200, "raw") is None


@pytest.mark.parametrize("model", [SweepWords, MineWords])
def test_every_key_has_a_sentence_and_agreement_ranks_nothing(model):
    assert all(field.description for field in model.model_fields.values())
    assert "agreement" not in METRICS
