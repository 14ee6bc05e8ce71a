"""The table of evaluations: names, files, and what a misspelt one is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cluster.evaluation
from cluster.evaluation.evaluator import Evaluator, Result
from cluster.evaluation.kept import evaluators
from cluster.evaluators import EVALUATORS, USUAL, asked_for
from cluster.keywords import EvaluateWords
from vidssl.errors import RecipeError


def test_every_line_of_the_table_is_an_evaluation_of_that_name():
    assert list(evaluators()) == list(EVALUATORS)
    for name, one in evaluators().items():
        assert isinstance(one, Evaluator)
        assert one.name == name
        assert issubclass(one.result, Result)


def test_every_evaluation_of_the_folder_is_in_the_table():
    sources = Path(cluster.evaluation.__file__).parent.glob("*.py")
    written = {name for path in sources for name in re.findall(r"^    name = \"(\w+)\"$", path.read_text(), re.M)}
    assert written == set(EVALUATORS)


def test_the_help_and_the_default_of_what_follow_the_table():
    field = EvaluateWords.model_fields["what"]
    assert field.default == USUAL == "retrieval,mining"
    assert ",".join(EVALUATORS) in str(field.description)


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("all", tuple(EVALUATORS)),
        ("knn", ("knn",)),
        ("[fewshot, retrieval]", ("retrieval", "fewshot")),
    ],
)
def test_asked_for_comes_in_the_order_of_the_table(word, names):
    assert asked_for(word) == names


@pytest.mark.parametrize(
    ("word", "near"),
    [("retreival", "retrieval"), ("knn,linaer", "linear"), ("few-shot", "fewshot"), ("minning", "mining")],
)
def test_a_misspelt_name_is_told_the_nearest(word, near):
    with pytest.raises(RecipeError, match=rf"what={word} is unknown; type what= some of .*; did you mean '{near}'\?"):
        asked_for(word)
