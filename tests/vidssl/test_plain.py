"""Plain values out of YAML and words, beside what OmegaConf itself makes of them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import ConfigTypeError

from vidssl.plain import UNREADABLE, of_text, of_word, put, resolved
from vidssl.recipe import RECIPES, load_recipe, recipe_from_tree

NAMES = st.sampled_from(["a", "b", "c"])
SCALARS = (
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.sampled_from(["x", "1e3", ""])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
)
TREES = st.dictionaries(NAMES, VALUES, max_size=3)
KEYS = st.lists(NAMES, min_size=1, max_size=3).map(".".join)


def by_omegaconf(tree: dict[str, Any], words: list[tuple[str, Any]]) -> Any:
    theirs = OmegaConf.create(tree)
    for key, value in words:
        OmegaConf.update(theirs, key, value, merge=True)
    return OmegaConf.to_container(theirs)


def through_a_list(tree: Any, key: str) -> bool:
    """OmegaConf would take a section of the key as the index of a list; a recipe has no such key."""
    for section in key.split("."):
        if isinstance(tree, list):
            return True
        tree = tree.get(section) if isinstance(tree, dict) else None
    return False


@given(TREES, st.lists(st.tuples(KEYS, VALUES), max_size=4))
def test_a_word_changes_a_plain_tree_as_omegaconf_changes_its_own(
    tree: dict[str, Any], words: list[tuple[str, Any]]
) -> None:
    ours, said = deepcopy(tree), []
    for key, value in words:
        if not through_a_list(ours, key):
            put(ours, key, deepcopy(value))
            said.append((key, value))
    try:
        theirs = by_omegaconf(tree, said)
    except ConfigTypeError:
        reject()  # a mapping laid over a list: ours replaces the list, and the recipe's own fields refuse the mapping
    assert ours == theirs


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_shipped_recipe_reads_and_resolves_as_by_omegaconf(name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    theirs = OmegaConf.load(path)
    plain = of_text(path.read_text(encoding="utf-8"))
    assert plain == OmegaConf.to_container(theirs, resolve=False)
    assert resolved(plain) == OmegaConf.to_container(theirs, resolve=True)


def test_a_reference_is_resolved_after_the_words_wherever_it_stands() -> None:
    tree = {"a": {"b": 3, "c": ["${a.b}", {"d": "${e}-${a.b}"}]}, "e": "x"}
    put(tree, "a.b", 4)
    assert resolved(tree) == {"a": {"b": 4, "c": [4, {"d": "x-4"}]}, "e": "x"}
    assert load_recipe("cpr-tiny", ["trainer.batch=12", "trainer.workers=0", "seed=${trainer.batch}"]).seed == 12
    with pytest.raises(UNREADABLE):
        resolved({"a": "${nobody}"})


def test_what_refers_to_nothing_is_left_as_it_is() -> None:
    tree = {"a": [1, "$", {"b": "{x}"}]}
    assert resolved(tree) is tree


@pytest.mark.parametrize("read", [of_text, of_word])
def test_whoever_changes_what_was_read_changes_nobody_elses(read: Any) -> None:
    text = "{a: {b: [1, 2]}}"
    first = read(text)
    first["a"]["b"].append(3)
    assert read(text) == {"a": {"b": [1, 2]}}


def test_a_recipe_made_of_a_mapping_leaves_the_mapping_alone() -> None:
    tree = load_recipe("cpr-tiny").model_dump(mode="json")
    before = deepcopy(tree)
    assert recipe_from_tree(tree, ["trainer.steps=5", "mining.stages=2"]).trainer.steps == 5
    assert tree == before


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: [", "&a [*a]", "\x00"])
def test_what_is_no_tree_is_not_read_as_one(text: str) -> None:
    for _ in range(2):  # nor the second time
        with pytest.raises(UNREADABLE):
            of_text(text)
