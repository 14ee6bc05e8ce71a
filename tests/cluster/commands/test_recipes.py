"""`vidssl recipes`: what each is for, what it needs and what it reaches, out of the comments that open its file."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from cluster.cli import main
from vidssl.errors import RecipeError
from vidssl.headers import header_of
from vidssl.recipe import RECIPES, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_opens_with_its_command_purpose_hardware_expected_score_and_source(name):
    header = header_of(RECIPES / f"{name}.yaml")
    assert header.command.split()[:3] in (["vidssl", "train", name], ["vidssl", "demo"])
    assert all((header.purpose, header.hardware, header.expected, header.source))
    assert len(header.purpose) <= 150


def test_the_list_says_purpose_hardware_and_expected_score_of_each(capsys):
    assert main(["recipes"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in recipe_names():
        header = header_of(RECIPES / f"{name}.yaml")
        assert f"{name} {header.purpose} hardware: {header.hardware} expected: {header.expected}" in said


@pytest.mark.parametrize("words", [["cpr-tiny"], ["--name", "cpr-tiny"], ["--name=cpr-tiny"]])
def test_one_recipe_is_shown_resolved_as_yaml_that_reads_back(words, capsys, tmp_path):
    assert main(["recipes", *words, "trainer.workers=3"]) == 0
    path = tmp_path / "again.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_recipe(str(path)) == load_recipe("cpr-tiny", ["trainer.workers=3"])
    assert OmegaConf.load(path).mining.max_staleness_steps is None  # a default that the file does not name


def test_an_unknown_recipe_is_refused_with_the_nearest(capsys):
    assert main(["recipes", "cpr-tinny"]) == 2
    assert "no recipe 'cpr-tinny'; there are " in (said := capsys.readouterr().err)
    assert "did you mean 'cpr-tiny'?" in said


def test_words_without_a_recipe_are_refused(capsys):
    assert main(["recipes", "trainer.workers=3"]) == 2
    assert "no recipe to set 'trainer.workers=3' in; type vidssl recipes NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: x\n", "mine.yaml does not open with its command"),
        ("# vidssl train mine\n# Purpose: x\nname: x\n", "mine.yaml opens without its Hardware"),
        ("# vidssl train mine\n# Purpose: x\n# Hardware:  \nname: x\n", "mine.yaml opens without its Hardware"),
    ],
)
def test_a_header_that_lacks_something_is_named(text, sentence, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=sentence):
        header_of(path)


def test_lines_that_go_on_belong_to_the_field_above_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# vidssl train mine\n# Purpose: one\n#   two\n# Hardware: h\n# Expected: e\n# Source: s\n# Notes: n\n#   m\nname: x\n"
    )
    header = header_of(path)
    assert (header.purpose, header.notes) == ("one two", "n m")
