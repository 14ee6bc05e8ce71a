from __future__ import annotations

import pytest
import torch

from vidssl.errors import CheckpointError, RecipeError
from vidssl.recipe import load_recipe, phase_recipe
from vidssl.saved.checkpoint import Meta, save_checkpoint, weights_hash
from vidssl.saved.phases import (
    check_sources,
    early_ends,
    finish_phase,
    forget_phase,
    phase_folder,
    read_records,
    state_of,
)

CYCLE = """\
method: {name: coclr, view: rgb, second_view: residual}
phases:
  - name: first-0
    words: {method.name: infonce, trainer.steps: 7}
  - name: second-0
    words: {method.name: infonce, method.view: "${method.second_view}", method.second_view: "${method.view}"}
  - {name: first-1, start: first-0, second: second-0}
"""


@pytest.fixture
def cycle(tmp_path):
    (tmp_path / "cycle.yaml").write_text(CYCLE)

    def load(*words: str):
        return load_recipe(str(tmp_path / "cycle.yaml"), words)

    return load


def pretend_trained(root, name, weights: bytes, step=5, passed=()):
    folder = phase_folder(root, name)
    save_checkpoint(folder, Meta(step, "r", "d", 1, 0, passed=passed), 0, {}, {"weights": torch.tensor(list(weights))})
    folder.recipe.write_text("name: x\n")


def test_a_phase_is_the_whole_recipe_with_its_words_and_its_sources_beside_it(cycle, tmp_path):
    recipe = cycle("trainer.batch=3")
    first, second, third = (phase_recipe(recipe, phase, tmp_path / "run") for phase in recipe.phases)
    assert (first.method.name, first.trainer.steps, first.trainer.batch) == ("infonce", 7, 3)
    assert (second.method.view, second.method.second_view, second.trainer.steps) == ("residual", "rgb", None)
    assert third.method.first_from == str(tmp_path / "run" / "first-0")
    assert third.method.second_from == str(tmp_path / "run" / "second-0")
    assert (third.name, third.trainer.storage, third.phases) == ("first-1", str(tmp_path / "run"), ())


def test_a_phase_may_start_from_another_as_it_was_after_an_epoch(cycle, tmp_path):
    (tmp_path / "cycle.yaml").write_text(CYCLE.replace("start: first-0", "start: first-0@2"))
    recipe = load_recipe(str(tmp_path / "cycle.yaml"), ["first-0:trainer.steps=null"])
    first, _, third = recipe.phases
    assert phase_recipe(recipe, third, tmp_path / "run").method.first_from == str(tmp_path / "run" / "first-0@2")
    assert phase_recipe(recipe, first).trainer.keep_epochs == (2,)
    assert phase_recipe(recipe, third).trainer.keep_epochs == ()
    for phase in recipe.phases:
        pretend_trained(tmp_path, phase.name, phase.name.encode())
    pretend_trained(tmp_path, "first-0", b"then", step=2, passed=(2,))
    for phase in recipe.phases:
        finish_phase(phase, recipe, tmp_path)
    assert read_records(tmp_path)["first-1"].inputs["start"] == weights_hash(phase_folder(tmp_path, "first-0"), 2)
    pretend_trained(tmp_path, "first-0", b"else", step=2, passed=(2,))
    assert state_of(third, tmp_path) == "stale"


@pytest.mark.parametrize("word", ["first-0:trainer.steps=5", "first-0:trainer.epochs=1"])
def test_where_a_phase_is_shortened_its_end_is_taken_and_that_is_said(tmp_path, word):
    (tmp_path / "cycle.yaml").write_text(
        CYCLE.replace("start: first-0", "start: first-0@2").replace("trainer.steps: 7", "trainer.epochs: 3")
    )
    whole, short = (load_recipe(str(tmp_path / "cycle.yaml"), words) for words in ([], [word]))
    assert early_ends(whole) == []
    assert early_ends(short) == [
        "phase first-1 takes its start stream from the end of first-0, which never ends epoch 2"
    ]
    assert phase_recipe(short, short.phases[2], tmp_path / "run").method.first_from == str(tmp_path / "run" / "first-0")
    assert phase_recipe(short, short.phases[0]).trainer.keep_epochs == ()


@pytest.mark.parametrize("word", ["first-0@", "first-0@0", "first-0@-1", "first-0@x", "@3", "first-0@1@2"])
def test_a_start_that_is_no_phase_and_epoch_is_refused(tmp_path, word):
    (tmp_path / "cycle.yaml").write_text(CYCLE.replace("start: first-0", f'start: "{word}"'))
    with pytest.raises(RecipeError, match=r"start.*no PHASE and no PHASE@EPOCH, as in first-0@300"):
        load_recipe(str(tmp_path / "cycle.yaml"))


def test_one_word_changes_the_second_stream_of_every_phase(cycle):
    recipe = cycle("method.second_view=flow")
    assert [phase_recipe(recipe, phase).method.view for phase in recipe.phases] == ["rgb", "flow", "rgb"]


def test_a_word_can_be_said_to_one_phase_or_to_all(cycle):
    recipe = cycle("first-0:trainer.steps=2", "*:trainer.batch=4")
    assert [phase_recipe(recipe, phase).trainer.steps for phase in recipe.phases] == [2, None, None]
    assert [phase_recipe(recipe, phase).trainer.batch for phase in recipe.phases] == [4, 4, 4]


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("start: first-0", "start: later", r"phase 'first-1' has start=later, which is no phase before it; there are first-0, second-0"),
        ("second: second-0", "second: first-0", r"phase 'first-1' wants a residual stream from second=first-0, which trains rgb"),
        ("name: second-0", "name: first-0", r"two phases are named 'first-0'"),
        ("trainer.steps: 7", "trainer.step: 7", r"phase 'first-0': unknown key 'trainer.step'; did you mean 'trainer.steps'\?"),
        ("trainer.steps: 7", "trainer.steps: 0", r"phase 'first-0': trainer.steps=0: input should be"),
    ],
)  # fmt: skip
def test_phases_that_cannot_follow_each_other_are_refused(tmp_path, before, after, sentence):
    (tmp_path / "wrong.yaml").write_text(CYCLE.replace(before, after))
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(str(tmp_path / "wrong.yaml"))


def test_a_word_for_a_phase_that_is_not_there_is_refused(cycle):
    with pytest.raises(
        RecipeError, match=r"'third:trainer.steps' names no phase; there are first-0, second-0, first-1"
    ):
        cycle("third:trainer.steps=2")


def test_states_follow_from_what_lies_in_the_folder(cycle, tmp_path):
    recipe = cycle()
    first, second, third = recipe.phases
    assert [state_of(phase, tmp_path) for phase in recipe.phases] == ["waiting"] * 3
    with pytest.raises(
        CheckpointError, match=r"phase 'first-1' takes its start stream from 'first-0', which is not fin"
    ):
        check_sources(third, recipe, tmp_path)
    for phase, weights in ((first, b"one"), (second, b"two")):
        pretend_trained(tmp_path, phase.name, weights)
        assert state_of(phase, tmp_path) == "begun"
        finish_phase(phase, recipe, tmp_path)
        assert state_of(phase, tmp_path) == "done"
    check_sources(third, recipe, tmp_path)
    pretend_trained(tmp_path, "first-1", b"three")
    finish_phase(third, recipe, tmp_path)
    assert read_records(tmp_path)["first-1"].inputs.keys() == {"start", "second"}
    assert state_of(third, tmp_path) == "done"


def test_a_source_trained_again_makes_what_came_from_it_stale(cycle, tmp_path):
    recipe = cycle()
    for phase in recipe.phases:
        pretend_trained(tmp_path, phase.name, phase.name.encode())
        finish_phase(phase, recipe, tmp_path)
    forget_phase("second-0", tmp_path)
    assert state_of(recipe.phases[1], tmp_path) == "begun"
    pretend_trained(tmp_path, "second-0", b"other weights")
    finish_phase(recipe.phases[1], recipe, tmp_path)
    assert [state_of(phase, tmp_path) for phase in recipe.phases] == ["done", "done", "stale"]


def test_a_checkpoint_that_changed_is_no_finished_phase(cycle, tmp_path):
    recipe = cycle()
    pretend_trained(tmp_path, "first-0", b"one")
    finish_phase(recipe.phases[0], recipe, tmp_path)
    pretend_trained(tmp_path, "first-0", b"one, and more", step=9)
    assert state_of(recipe.phases[0], tmp_path) == "begun"


def test_a_phase_whose_checkpoint_is_damaged_is_not_finished(cycle, tmp_path):
    recipe = cycle()
    pretend_trained(tmp_path, "first-0", b"one")
    finish_phase(recipe.phases[0], recipe, tmp_path)
    (phase_folder(tmp_path, "first-0").checkpoints / "step-00000005" / "meta.json").write_text("{}")
    assert state_of(recipe.phases[0], tmp_path) == "begun"


@pytest.mark.parametrize(
    "content", ['{"first-0": {"steps": 1}}', "[1]", '{"a": 3}', "{", "null", "\udcff", "[" * 10**5]
)
def test_damaged_records_are_named(tmp_path, content):
    (tmp_path / "phases.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"phases.json is damaged"):
        read_records(tmp_path)
