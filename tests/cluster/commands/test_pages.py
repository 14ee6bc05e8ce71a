"""Every key that a verb takes stands on its page, with its sentence, its default and what it may be."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from cluster.cli import main
from cluster.commands.table import VERBS
from pipelines.packing.options import PackOptions
from vidssl.recipe import Recipe, load_recipe, recipe_names


def page(capsys, *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Dotted name → sentence of every leaf, walked here without the code under test."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= fields(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.description or ""
    return found


def said(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page_no_wider_than_the_terminal(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = page(capsys, verb, "--help")
    assert text.startswith(f"vidssl {verb} ")
    assert max(len(line) for line in text.splitlines()) <= 80
    for place in VERBS[verb].places:
        assert place.name in text
    for option in VERBS[verb].options:
        assert f"\n  {option.name}" in text


def test_the_page_of_train_names_every_key_of_a_recipe_with_its_sentence(capsys):
    text = page(capsys, "train", "--help")
    for name, sentence in fields(Recipe).items():
        assert re.search(rf"^  {re.escape(name)}=", text, re.M), name
        assert said(sentence) in said(text), name


def test_the_page_of_pack_names_every_option_with_its_sentence(capsys):
    text = page(capsys, "pack", "--help")
    for name, sentence in fields(PackOptions).items():
        assert re.search(rf"^  {re.escape(name)}=", text, re.M), name
        assert said(sentence) in said(text), name


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        (
            "train",
            "trainer.workers=1 Ray Train workers, one device each; [MIN,MAX]: as many of them as there is room for, see "
            "`min_workers`; 0: one, see `in_process` [whole number 1 to 100000]",
        ),
        ("train", "mining.ratio=null share kept by each stage; give this or pool [number > 0 and ≤ 1 or null]"),
        ("train", "mining.backend=auto auto picks by N, k and device [auto | numpy | torch | faiss | oracle]"),
        ("train", "optim.lr=0.001 peak learning rate [number > 0 and ≤ 1e+30]"),
        ("pack", "size=128 short side, pixels [whole number 128 to 1024, a multiple of 2]"),
        ("demo", "--seed N of data, weights and order [whole number ≥ 0; default 0]"),
    ],
)
def test_a_key_stands_with_its_sentence_default_and_range(verb, line, capsys):
    assert line in said(page(capsys, verb, "--help"))


def test_evaluate_shows_only_the_keys_that_a_trained_run_takes(capsys):
    text = page(capsys, "evaluate", "--help")
    assert set(re.findall(r"^  ([a-z_.]+)=", text, re.M)) == {
        "what",
        "view",
        "baseline",
        "data",
        "trainer.device",
        *(name for name in fields(Recipe) if name.startswith(("evaluation.", "finetune.", "loader."))),
    }


def test_the_page_of_a_recipe_shows_its_own_values_beside_the_defaults(capsys):
    text = said(page(capsys, "train", "cpr-tiny", "--help"))
    assert "`min_workers`; 0: one, see `in_process` [whole number 1 to 100000; default 1]" in text
    assert "trainer.workers=2 Ray Train workers, one device each" in text
    assert "optim.lr=0.001 peak learning rate [number > 0 and ≤ 1e+30]" in text  # as the default: nothing beside it
    assert text != said(page(capsys, "train", "--help"))


def test_the_page_of_the_demo_shows_the_values_of_its_recipe(capsys):
    assert f"trainer.steps={load_recipe('cpr-demo').trainer.steps} " in page(capsys, "demo", "--help")


def test_the_page_of_a_recipe_takes_the_words_behind_it(capsys):
    assert "trainer.workers=7 " in page(capsys, "train", "cpr-tiny", "trainer.workers=7", "--help")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_page_with_its_values_and_phases(name, capsys):
    text, recipe = page(capsys, "train", name, "--help"), load_recipe(name)
    assert f"  method.queue={recipe.method.queue} " in text
    assert all(f"\n  {phase.name} " in text for phase in recipe.phases)


def test_the_page_of_an_unknown_recipe_asks_which_was_meant(capsys):
    assert main(["train", "cpr-tinny", "--help"]) == 2
    assert "did you mean 'cpr-tiny'?" in capsys.readouterr().err


def test_the_front_page_names_every_verb_with_its_sentence(capsys):
    text = page(capsys, "--help")
    assert page(capsys) == text
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.sentence[:30])}", text, re.M)
