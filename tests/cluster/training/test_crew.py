"""Fewer workers share the same step: its videos, and what one pass holds, stay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.capacity import sizes_of
from cluster.training.crew import crew_of
from vidssl.errors import RecipeError
from vidssl.recipe import load_recipe


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(1, 12), st.integers(1, 12))
def test_a_step_keeps_its_videos_and_a_pass_holds_no_more_than_before(least, more, batch, parts):
    words = [
        f"trainer.workers=[{least},{least + more}]",
        f"trainer.batch={batch * parts}",
        f"trainer.accumulate={parts}",
    ]
    recipe = load_recipe("cpr-tiny", words)
    for workers in sizes_of(recipe.trainer):
        crew = crew_of(recipe, workers).trainer
        assert crew.workers == workers
        assert crew.batch * workers == batch * parts * (least + more)
        assert crew.batch % crew.accumulate == 0
        assert crew.batch // crew.accumulate <= batch


def test_all_of_them_train_the_recipe_itself():
    recipe = load_recipe("cpr-tiny", ["trainer.workers=[1,3]", "trainer.batch=4"])
    assert crew_of(recipe, 3) is recipe
    assert crew_of(recipe, 1).settings().keys() == recipe.settings().keys()


def test_a_method_that_needs_all_rows_at_once_does_them_at_once():
    crew = crew_of(load_recipe("vicc-tiny", ["trainer.workers=[1,2]"]), 1).trainer
    assert (crew.batch, crew.accumulate) == (48, 1)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("trainer.workers=[4]", r"trainer\.workers is a list of 1; type trainer\.workers=\[MIN,MAX\]"),
        ("trainer.workers=[5,2]", r"trainer\.min_workers=5 is more than trainer\.workers=2"),
        ("trainer.workers=[0,4]", r"trainer\.min_workers=0"),
        ("trainer.workers=[true,4]", r"trainer\.min_workers=True: input should be a number"),
        ("trainer.workers=[1,b]", r"trainer\.workers='b'"),
        ("trainer.wait_for_nodes=-1", r"trainer\.wait_for_nodes=-1"),
    ],
)
def test_words_for_fewest_and_most_are_checked(word, sentence):
    with pytest.raises(RecipeError, match=sentence):
        load_recipe("cpr-tiny", [word])


def test_fewest_and_most_read_back_from_the_recipe_they_are_written_to(tmp_path):
    recipe = load_recipe("cpr-tiny", ["trainer.workers=[2,4]", "trainer.wait_for_nodes=60"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    again = load_recipe(str(tmp_path / "recipe.yaml"))
    assert (again.trainer.min_workers, again.trainer.workers, again.trainer.wait_for_nodes) == (2, 4, 60.0)
    assert again.fingerprint() == load_recipe("cpr-tiny", ["trainer.workers=4"]).fingerprint()
