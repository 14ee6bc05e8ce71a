"""Which trainings a sweep makes of a recipe, its axes and its arms: feasible, distinct, the rivals among them."""

from __future__ import annotations

import pytest

from cluster.sweep.search import ablation_names, level_of, open_sweep
from cluster.sweep.space import trainings_of
from tests.cluster.sweep.worlds import manifest_of
from vidssl.errors import RecipeError
from vidssl.recipe import RECIPES

PUBLISHED = {"cpr": "cpr-ucf101-s3d", "vicc": "vicc-ucf101-s3d", "iic": "iic-ucf101-r3d"}
MINES = {"cpr-stages", "cpr-ratio", "cpr-topk", "cpr-progressive"}


def made(name, tmp_path, *words, videos=240):
    sweep = open_sweep(name, [f"data={tmp_path}", *words])
    return trainings_of(sweep, manifest_of(tmp_path, videos), str(tmp_path / "trials"))


def arms(trainings):
    return [one.arm for one in trainings]


@pytest.mark.parametrize("published", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ablation_names())
def test_every_ablation_compares_distinct_trainings_on_its_tiny_and_on_its_published_base(name, published, tmp_path):
    stem = name.partition("/")[2]
    words = [f"recipe={PUBLISHED[stem.partition('-')[0]]}", "method.second_view=residual"] if published else []
    trainings, _ = made(name, tmp_path, *words)
    assert len(trainings) >= (1 if stem == "iic-views" else 2)  # u and v want flow, which this pack has not
    assert len({one.key for one in trainings}) == len(trainings) == len({one.recipe.name for one in trainings})
    if stem in MINES:
        assert any(arm.startswith("single (S=1)") for arm in arms(trainings))
        assert any(arm.startswith("sum") for arm in arms(trainings))
        assert any(one.recipe.mining.strategy == "cascade" and one.recipe.mining.stages > 1 for one in trainings)
    text = (RECIPES / f"{name}.yaml").read_text()
    assert text.startswith(f"# vidssl sweep {name} data=PACKED\n# Purpose: ")
    assert "# Published: " in text


def test_axes_are_combined_and_the_first_seed_of_all_points_comes_first(tmp_path):
    trainings, left = made("cpr-tiny", tmp_path, "mining.stages=[3,5]", "mining.topk=[1,5]", "seeds=[7,8]")
    assert left == []
    points = {(k, s) for k in (1, 5) for s in (3, 5)}
    cascades = [one for one in trainings if one.recipe.mining.stages > 1]
    assert {(one.recipe.mining.topk, one.recipe.mining.stages) for one in cascades} == points
    rivals = [arm for arm in arms(trainings[: len(trainings) // 2]) if arm.startswith(("single", "sum"))]
    assert rivals == ["single (S=1) topk=1", "single (S=1) topk=5", "sum topk=1", "sum topk=5"]
    assert [one.seed for one in trainings] == [7] * 8 + [8] * 8
    assert {one.recipe.seed for one in trainings[:8]} == {7}
    assert all(one.recipe.trainer.storage == str(tmp_path / "trials") for one in trainings)


def test_what_cannot_be_or_repeats_another_is_left_out_and_said(tmp_path):
    words = ["mining.pool=null", "mining.ratio=0.5", "mining.stages=[1,3,4,5,9]"]
    trainings, left = made("cpr-tiny", tmp_path, *words)
    assert arms(trainings) == ["single (S=1)", "sum", "stages=3", "stages=5"]
    assert [one.pool for one in trainings] == [240, 240, 60, 15]
    assert left[0] == "left out: stages=1 trains what single (S=1) trains"
    assert left[1].startswith("left out: stages=4: mining.stages=4 with mining.last_view=main mines what 3 of the same")
    assert left[2].startswith("left out: stages=9: mining.stages=9 mining.ratio=0.5 leave 0 of 240 slots")


def test_the_same_pool_by_two_names_is_one_training(tmp_path):
    trainings, left = made("cpr-tiny", tmp_path, "mining.pool=null", "mining.ratio=[0.5,0.50001]")
    assert arms(trainings) == ["single (S=1)", "sum", "ratio=0.5"]
    assert left == ["left out: ratio=0.50001 trains what ratio=0.5 trains"]


def test_a_sweep_of_something_else_than_mining_has_no_rivals(tmp_path):
    trainings, _ = made("cpr-tiny", tmp_path, "optim.lr=[0.001,0.0001]")
    assert arms(trainings) == ["lr=0.001", "lr=0.0001"]
    assert arms(made("coclr-tiny", tmp_path, "mining.topk=[1,5]")[0]) == ["topk=1", "topk=5"]  # mines in one stage


def test_cycles_keep_the_phases_up_to_that_number(tmp_path):
    trainings, left = made("vicc-tiny", tmp_path, "cycles=[0,1,2]")
    assert [[phase.name for phase in one.recipe.phases] for one in trainings] == [
        ["first-0", "second-0"],
        ["first-0", "second-0", "first-1"],
    ]
    assert left == ["left out: cycles=2: cycles=2: vicc-tiny has phases of cycles 0 to 1"]


def test_words_that_a_phase_sets_are_axes_of_that_phase(tmp_path):
    trainings, _ = made("vicc-tiny", tmp_path, "first-0:trainer.steps=[5,9]")
    assert [one.recipe.phases[0].words["trainer.steps"] for one in trainings] == [5, 9]
    assert {one.recipe.trainer.steps for one in trainings} == {200}


def test_a_list_is_an_axis_only_where_the_key_takes_one_value(tmp_path):
    sweep = open_sweep("cpr-tiny", ["optim.milestones=[0.5,0.8]", "optim.gamma=[0.1,0.5]"])
    assert sweep.base.optim.milestones == (0.5, 0.8)
    assert sweep.search.space == {"optim.gamma": [0.1, 0.5]}
    lists = open_sweep("cpr-tiny", ["optim.milestones=[[0.5],[0.8]]", "mining.progressive=[[[0,1],[5,5]],[[0,5]]]"])
    assert lists.search.space == {
        "optim.milestones": [[0.5], [0.8]],
        "mining.progressive": [[[0, 1], [5, 5]], [[0, 5]]],
    }


def test_a_recipe_file_may_say_its_own_search(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nmethod: {name: infonce}\nmining: {where: 'off'}\nsearch: {space: {optim.lr: [0.1, 0.01]}, seeds: [4]}\n"
    )
    assert level_of(str(path), ["data=x"]) == ("train", ["data=x"])
    trainings, _ = made(str(path), tmp_path)
    assert [(one.arm, one.seed, one.recipe.method.name) for one in trainings] == [
        ("lr=0.1", 4, "infonce"),
        ("lr=0.01", 4, "infonce"),
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["optim.lrr=[1,2]"], "unknown key 'optim.lrr'"),
        (["optim=[1,2]"], "'optim' is a section, and an axis is one key"),
        (["optim.lr=0.1"], "nothing to compare in cpr-tiny; type an axis, e.g. mining.stages"),
        (["optim.lr=[]"], r"optim.lr=\[\] has no value"),
        (["seed=3", "optim.lr=[1,2]"], r"seed=3: a sweep has seeds; type seeds=\[3\]"),
        (["reduction=1", "optim.lr=[1,2]"], "search: reduction=1: input should be greater than or equal to 2"),
        (["space=[1]"], "space= is said in a file"),
        (["recipe=cpr-tinny", "optim.lr=[1,2]"], "no recipe 'cpr-tinny'; .* did you mean 'cpr-tiny'"),
        (["optim.lr=[-1,-2]"], "no point of this sweep can be trained; the first one was left out: lr=-1: .*optim.lr"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(words, sentence, tmp_path):
    with pytest.raises(RecipeError, match=sentence):
        made("cpr-tiny", tmp_path, *words)


def test_the_level_is_the_files_or_the_typed_one():
    assert level_of("cpr-tiny", ["level=train", "a=b"]) == ("train", ["a=b"])
    assert level_of("ablations/cpr-stages", []) == ("train", [])
    assert level_of("cpr-tiny", ["run=x"]) == ("bank", ["run=x"])
    with pytest.raises(RecipeError, match="level=middle is unknown; type level= one of bank, train"):
        level_of("cpr-tiny", ["level=middle"])
    with pytest.raises(RecipeError, match="says what to train; type it without level=bank"):
        level_of("ablations/cpr-stages", ["level=bank"])
    with pytest.raises(RecipeError, match="level=train trains a recipe"):
        level_of("", ["level=train"])
