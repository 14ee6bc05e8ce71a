"""Which point is next: by lot each once, by Optuna better than by lot, the rivals always, and out of the rows alone."""

from __future__ import annotations

import builtins
import dataclasses

import numpy as np
import pytest

from cluster.sweep.chooser import Choice, _distributions, _indices, refuse_without_optuna
from cluster.sweep.search import TrainSearch, open_sweep
from cluster.sweep.space import Training, axes_of, trainings_of
from tests.cluster.sweep.worlds import manifest_of, row_of
from vidssl.errors import RecipeError
from vidssl.recipe import load_recipe

RECIPE = load_recipe("infonce-tiny")
SIDE = 8


def square(seeds=(0,)):
    """Points of two axes, as trainings of nothing."""
    points = [{"x": x, "y": f"y{y}"} for x in range(SIDE) for y in range(SIDE)]
    return [Training(f"{at['x']} {at['y']}", seed, RECIPE, f"{at}/{seed}", None, at) for seed in seeds for at in points]


def rivals():
    """Single and sum, at every y."""
    points = [{"arm": name, "y": f"y{y}"} for name in ("single (S=1)", "sum") for y in range(SIDE)]
    found = [Training(f"{at['arm']} {at['y']}", 0, RECIPE, str(at), None, at, rival=True) for at in points]
    return [*found, *(dataclasses.replace(one, at={"arm": "cascade", **one.at}) for one in square())]


def quality(at):
    """One hill, in a corner."""
    return 1 - ((at["x"] - 6) ** 2 + (int(at["y"][1:]) - 1) ** 2) / 100


def rows_of(training, **told):
    return dataclasses.replace(row_of(training.arm, training.seed, **told), key=training.key)


def walk(trainings, rows=None, scored=lambda one: quality(one.at), **search):
    """Train one after the other to the end; returns arms and seeds in their order, and the rows."""
    rows, order = [] if rows is None else rows, []
    choice = Choice(trainings, TrainSearch(**search), rows)
    while (one := choice.next()) is not None:
        order.append((one.arm, one.seed))
        rows.append(rows_of(one, r1=scored(one)))
    assert choice.missing == 0
    assert len(order) == len(set(order))
    return order, rows


def test_a_grid_is_every_point_in_its_order():
    trainings = square((3, 4))
    order, _ = walk(trainings, seeds=(3, 4))
    assert order == [(one.arm, one.seed) for one in trainings]


def test_lots_are_drawn_of_all_points_with_all_their_seeds_and_more_of_them_hold_the_fewer():
    few, _ = walk(square((0, 1)), seeds=(0, 1), sampler="random", points=9)
    many, _ = walk(square((0, 1)), seeds=(0, 1), sampler="random", points=20)
    assert len(few) == 18
    assert {arm for arm, _ in few} < {arm for arm, _ in many}
    assert len({arm for arm, _ in many}) == 20
    assert walk(square((5,)), seeds=(5,), sampler="random", points=9)[0] != few


@pytest.mark.parametrize("sampler", ["random", "optuna"])
def test_one_of_each_rival_comes_first_and_the_others_are_points_like_any(sampler):
    known = {one.arm: one for one in rivals()}

    def scored(one):
        return 0.9 if one.rival and one.at["y"] == "y3" else 0.1

    order, _ = walk(rivals(), scored=scored, sampler=sampler, points=8)
    assert {known[arm].at["arm"] for arm, _ in order[:2]} == {"single (S=1)", "sum"}
    assert len(order) == 8
    assert any(known[arm].at["arm"] == "cascade" for arm, _ in order)
    least, _ = walk(rivals(), scored=scored, sampler=sampler, points=1)
    assert [known[arm].rival for arm, _ in least] == [True, True, False]


@pytest.mark.slow
def test_optuna_finds_the_hill_with_fewer_trainings_than_lots():
    points = [{"x": x, "y": f"y{y}", "z": z} for x in range(SIDE) for y in range(SIDE) for z in (1, 2, 5, 7)]

    def best(sampler, seed):
        known = [Training(str(at), seed, RECIPE, str(at), None, at) for at in points]
        _, rows = walk(
            known,
            scored=lambda one: quality(one.at) - 0.03 * abs(one.at["z"] - 5),
            seeds=(seed,),
            sampler=sampler,
            points=25,
        )
        return max(row.r1 for row in rows)

    found = {sampler: np.array([best(sampler, seed) for seed in range(4)]) for sampler in ("random", "optuna")}
    assert found["optuna"].mean() > found["random"].mean()
    assert found["optuna"].min() > 0.9


def test_optuna_comes_to_every_point_where_all_are_asked_for():
    few = [one for one in square() if one.at["x"] < 3 and one.at["y"] < "y3"]
    assert len(walk(few, sampler="optuna")[0]) == 9


def test_a_choice_is_made_of_the_rows_alone():
    straight, rows = walk(square(), sampler="optuna", points=15)
    for cut in (1, 7, 14):
        left, _ = walk(square(), rows=list(rows[:cut]), sampler="optuna", points=15)
        assert straight[cut:] == left


def test_points_that_train_at_the_same_time_are_different_ones_and_what_has_begun_goes_on_first():
    trainings = square((0, 1))
    choice = Choice(trainings, TrainSearch(seeds=(0, 1), sampler="optuna", points=6), [])
    at_once = [choice.next() for _ in range(6)]
    assert [(one.arm, one.seed) for one in at_once] == [(one.arm, seed) for one in at_once[::2] for seed in (0, 1)]
    begun = [rows_of(at_once[0], r1=0.3, percent=25)]
    again = Choice(trainings, TrainSearch(seeds=(0, 1), sampler="optuna", points=6), begun)
    assert [again.next().key for _ in range(2)] == [at_once[0].key, at_once[1].key]
    assert (again.wanted, again.missing) == (12, 12)


def test_optuna_is_told_what_ended_what_was_stopped_what_failed_and_what_trains():
    trainings, rows = square()[:5], []
    choice = Choice(trainings, TrainSearch(sampler="optuna"), rows)
    ended, stopped, failed, trains = (choice.next() for _ in range(4))
    rows.append(rows_of(ended, r1=0.4, percent=25))
    rows.append(rows_of(ended, r1=0.6))
    rows.append(rows_of(stopped, r1=0.2, percent=25, state="stopped"))
    choice.failed(failed)
    axes = axes_of(one.at for one in trainings)
    dists = _distributions(axes)
    told = [
        choice._told(one.arm, dict(zip(axes, _indices(one.at, axes), strict=True)), dists)
        for one in (ended, stopped, failed, trains)
    ]
    assert [one.state.name for one in told] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert told[0].value == 0.6
    assert told[1].intermediate_values == {25: 0.2}
    assert choice.next() is not None
    assert choice.next() is None
    assert choice.missing == 3  # all but those that ended and the one that was stopped


def test_the_points_of_a_real_search_know_their_place_on_every_axis(tmp_path):
    words = ["mining.stages=[3,5]", "mining.topk=[1,5]", "sampler=random", "points=2", f"data={tmp_path}"]
    sweep = open_sweep("cpr-tiny", words)
    trainings, _ = trainings_of(sweep, manifest_of(tmp_path), str(tmp_path))
    of_rivals = [one.at for one in trainings if one.rival]
    assert of_rivals == [{"arm": name, "mining.topk": k} for name in ("single (S=1)", "sum") for k in (1, 5)]
    assert {"arm": "cascade", "mining.stages": 5, "mining.topk": 1} in [one.at for one in trainings]
    assert Choice(trainings, sweep.search, []).wanted == 3  # two were asked for: each rival and one of the others
    named = open_sweep("ablations/iic-negatives", [f"data={tmp_path}"])
    arms, _ = trainings_of(named, manifest_of(tmp_path), str(tmp_path))
    assert all(one.at for one in arms)


def test_words_that_mean_nothing_are_refused():
    with pytest.raises(RecipeError, match="points=3: sampler=grid trains every point; type sampler=random or"):
        open_sweep("cpr-tiny", ["optim.lr=[1,2]", "points=3"])
    with pytest.raises(RecipeError, match="search: sampler='tpe'"):
        open_sweep("cpr-tiny", ["optim.lr=[1,2]", "sampler=tpe"])


def test_without_optuna_the_sentence_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def none(name, *rest):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", none)
    refuse_without_optuna(TrainSearch(sampler="random"))
    with pytest.raises(RecipeError, match=r"type pip install 'vidssl\[optuna\]', or sampler=random"):
        refuse_without_optuna(TrainSearch(sampler="optuna"))
