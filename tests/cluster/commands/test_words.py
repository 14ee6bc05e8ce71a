"""Words told apart: by place, options, settings; and each that fits nowhere refused in one sentence."""

from __future__ import annotations

import pytest

from cluster.commands.table import VERBS
from cluster.commands.words import Option, Place, Words, read_words
from vidssl.errors import RecipeError

PLACES = (Place("FROM", "where from"), Place("TO", "where to", needed=False))
OPTIONS = (
    Option("--workers", "how many", "N", least=1),
    Option("--out", "where", "FOLDER", default="here"),
    Option("--fresh", "anew"),
)


def read(*words: str) -> Words:
    return read_words("move", PLACES, OPTIONS, words)


def test_places_options_and_settings_may_stand_in_any_order():
    expected = ({"FROM": "a", "TO": "b"}, {"--out": "here", "--workers": "3", "--fresh": ""}, ("x.y=1", "z=a=b"))
    for words in (
        ("a", "b", "x.y=1", "z=a=b", "--workers", "3", "--fresh"),
        ("--fresh", "x.y=1", "a", "--workers=3", "z=a=b", "b"),
        ("x.y=1", "z=a=b", "--workers", "3", "--fresh", "--", "a", "b"),
    ):
        found = read(*words)
        assert (found.places, found.options, found.settings) == expected
        assert found.argv == ("move", *words)
    assert (found.number("--workers"), found.on("--fresh"), found.option("--out")) == (3, True, "here")


def test_a_path_with_an_equals_sign_is_a_path_where_a_slash_stands_before_it():
    assert read("./a=b", "/x/c=d").places == {"FROM": "./a=b", "TO": "/x/c=d"}


def test_what_is_not_typed_is_absent():
    found = read("a")
    assert (found.place("TO"), found.number("--workers"), found.on("--fresh")) == (None, None, False)


def test_behind_two_dashes_nothing_is_an_option():
    assert read("--", "--fresh").places == {"FROM": "--fresh"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), r"no FROM given \(where from\); type vidssl move FROM TO key=value …"),
        (("x=1",), "no FROM given"),
        (("a", "b", "c"), "'c' is one word too many; type vidssl move FROM TO key=value …"),
        (("a", "=1"), "'=1' is no setting; type key=value"),
        (("a", "k="), "'k=' has no value; type k=VALUE, or leave it out for its default"),
        (("a", "k=1", "k=2"), "k is given twice, 1 and 2; type it once"),
        (("a", ""), r"word 2 is empty \(a variable that is not set\?\); leave it out"),
        (("a", "  "), "word 2 is empty"),
        (("a", "k=\udcff"), r"'k=\\udcff' holds bytes that are not UTF-8"),
        (("a", "b\nc"), r"'b\\nc' holds a control character"),
        (("a", "b\x00"), r"'b\\x00' holds a control character"),
        (("a", "--frsh"), r"unknown option '--frsh'; see: vidssl move --help; did you mean '--fresh'\?"),
        (("a", "--fre"), r"unknown option '--fre'; .*did you mean '--fresh'\?"),
        (("a", "-x"), "unknown option '-x'"),
        (("a", "--fresh=1"), "--fresh takes no value; type only --fresh"),
        (("a", "--fresh", "--fresh"), "--fresh is given twice"),
        (("a", "--out"), "--out wants a value; type --out FOLDER"),
        (("a", "--out", "--fresh"), "--out wants a value"),
        (("a", "--out="), "--out wants a value"),
        (("a", "--workers", "x"), "--workers x: give a whole number ≥ 1"),
        (("a", "--workers", "-1"), "--workers -1: give a whole number ≥ 1"),
        (("a", "--workers", "0"), "--workers 0: give a whole number ≥ 1"),
        (("a", "--workers", "1.5"), "--workers 1.5: give"),
        (("a", "--workers", "٣"), "--workers ٣: give"),
        (("a", "--workers", "9" * 30), "at most nine digits"),
    ],
)
def test_a_word_that_fits_nowhere_is_refused_in_one_sentence(words, sentence):
    with pytest.raises(RecipeError, match=sentence) as caught:
        read(*words)
    assert "\n" not in str(caught.value)


def test_a_long_word_is_not_repeated_whole():
    with pytest.raises(RecipeError, match="too many") as caught:
        read("a", "b", "c" * 5000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("verb", ["evaluate", "finetune", "status", "embed", "export", "mine"])
def test_a_verb_that_takes_a_run_says_how_a_copy_of_one_is_brought_here(verb):
    command = VERBS[verb]
    with pytest.raises(
        RecipeError, match=f"`vidssl {verb}` takes a folder; .*: vidssl train --resume s3://b/runs/one trainer"
    ):
        read_words(verb, command.places, command.options, ["s3://b/runs/one"])
