"""What a plan keeps at each stage, and which plans are refused before anything starts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.errors import RecipeError
from vidssl.mining.plan import CascadePlan, plan_from
from vidssl.recipe import Mining


@pytest.mark.parametrize(
    ("stages", "last_view", "views"),
    [
        (1, "main", (0,)),
        (2, "main", (0, 0)),
        (2, "alternate", (0, 1)),
        (3, "main", (0, 1, 0)),
        (4, "main", (0, 1, 0, 0)),
        (4, "alternate", (0, 1, 0, 1)),
        (7, "alternate", (0, 1, 0, 1, 0, 1, 0)),
    ],
)
def test_views_alternate_from_main_and_the_last_is_main_or_alternates(stages, last_view, views):
    assert CascadePlan(2048, stages, 0.5, 5, last_view).views == views


def test_sizes_are_the_published_ones_for_ucf101_and_kinetics():
    assert CascadePlan(2048, 7, 0.5, 5).sizes(2048) == (1024, 512, 256, 128, 64, 32, 5)
    assert CascadePlan(16384, 7, 0.5, 5).sizes(16384) == (8192, 4096, 2048, 1024, 512, 256, 5)
    assert CascadePlan(16384, 7, 0.5, 5).last_pool == 256


def test_sizes_keep_the_float_floor_of_the_published_code():
    assert CascadePlan(1000, 4, 0.3, 5).sizes(1000) == (300, 90, 26, 5)  # exact arithmetic says 27


def test_sizes_follow_the_filled_slots_and_never_fall_below_k():
    assert CascadePlan(2048, 3, 0.1, 5).sizes(100) == (10, 5, 5)


def test_rivals_are_one_stage_whatever_the_stages_are():
    plan = CascadePlan(100, 7, 0.1, 5, strategy="minrank")
    assert (plan.depth, plan.sizes(100), plan.last_pool, plan.needs_aux) == (1, (5,), 100, True)
    for name in ("single", "oracle"):
        assert not CascadePlan(100, 7, 0.1, 5, strategy=name).needs_aux


@settings(max_examples=60, deadline=None)
@given(n=st.integers(20, 5000), stages=st.integers(2, 9), data=st.data())
def test_a_pool_is_kept_exactly(n, stages, data):
    pool = data.draw(st.integers(5, n))
    plan = plan_from(Mining(stages=stages, pool=pool, topk=5), n)
    assert plan.last_pool == pool
    sizes = plan.sizes(n)
    assert list(sizes) == sorted(sizes, reverse=True)


def test_without_ratio_and_pool_the_published_ratio_is_used():
    assert plan_from(Mining(), 2048).ratio == 0.5


def test_one_stage_takes_a_pool_without_effect():
    assert plan_from(Mining(stages=1, pool=9), 100).sizes(100) == (5,)


@pytest.mark.parametrize(
    ("mining", "sentence"),
    [
        (
            Mining(stages=4, ratio=0.1),
            r"mining.stages=4 mining.ratio=0.1 leave 2 of 2048 .* type mining.stages=3, mining.ratio=0\.13",
        ),
        (Mining(stages=6, ratio=0.25), r"leave 2 of 2048 slots for the last stage, fewer than mining.topk=5"),
        (Mining(stages=10, ratio=0.5), r"leave 4 of 2048 slots for the last stage, fewer than mining.topk=5"),
        (Mining(pool=3), r"mining.pool=3 must hold mining.topk=5 .* type mining.pool="),
        (Mining(pool=5000), r"mining.pool=5000 must hold .* at most all 2048 slots; type mining.pool=2048"),
        (Mining(topk=3000), r"mining.topk=3000 of 2048 slots: type mining.topk=2048"),
    ],
)
def test_what_cannot_be_mined_is_refused_with_what_to_type(mining, sentence):
    with pytest.raises(RecipeError, match=sentence):
        plan_from(mining, 2048)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), stages=st.integers(2, 9), ratio=st.floats(0.01, 1), k=st.integers(1, 20))
def test_a_refused_ratio_names_stages_and_a_ratio_that_work(n, stages, ratio, k):
    import re

    try:
        CascadePlan(n, stages, ratio, k)
    except RecipeError as error:
        if advice := re.search(r"type mining.stages=(\d+), mining.ratio=([\d.]+)", str(error)):
            CascadePlan(n, int(advice[1]), ratio, k)
            CascadePlan(n, stages, min(float(advice[2]), 1.0), k)


def test_a_ratio_outside_its_range_is_refused():
    with pytest.raises(RecipeError, match="ratio is above 0 and at most 1"):
        CascadePlan(100, 3, 1.5, 5)


@pytest.mark.parametrize("stages", [2, 4, 6])
def test_an_even_plan_is_noted_and_refused_in_a_search(stages):
    plan = CascadePlan(2048, stages, 0.5, 5)
    assert "type mining.stages=" in plan.notes[0]
    with pytest.raises(RecipeError, match=f"mines what {stages - 1} of the same ratio"):
        plan.check_search()


@pytest.mark.parametrize(
    "plan", [CascadePlan(2048, 3), CascadePlan(2048, 4, last_view="alternate"), CascadePlan(99, 1)]
)
def test_a_distinct_plan_passes_a_search_without_notes(plan):
    plan.check_search()
    assert plan.notes == ()


def test_every_description_states_the_last_pool():
    assert "p=32" in CascadePlan(2048, 7).describe()
    assert "p=2048" in CascadePlan(2048, 7, strategy="sum").describe()
