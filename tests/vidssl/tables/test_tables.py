"""Tables: what a recipe can name is loaded from where its line says, and an unknown name never becomes another one."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from vidssl.backbones import build_backbone
from vidssl.backbones.trunk import Trunk
from vidssl.errors import RecipeError
from vidssl.methods import build_method, method_class
from vidssl.methods.base import Method
from vidssl.mining.plan import CascadePlan
from vidssl.mining.strategy import Strategy, strategy_of
from vidssl.recipe import Recipe
from vidssl.tables.backbones import BACKBONES
from vidssl.tables.methods import METHODS
from vidssl.tables.strategies import RIVALS, STRATEGIES


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_the_class_that_its_line_names(name):
    made = build_method(Recipe.model_validate({"method": {"name": name}}), instances=4)
    assert type(made) is method_class(name)
    assert isinstance(made, Method)
    assert made.name == name


def test_streams_of_a_method_are_those_that_it_has():
    kinds = {name: len(views_of(name)) for name in METHODS} | {"vicc cross": len(views_of("vicc", "cross"))}
    assert (
        kinds.items()
        >= {"infonce": 1, "ubernce": 1, "coclr": 2, "cpr": 2, "vicc": 1, "vicc cross": 2, "iic": 2}.items()
    )


def views_of(name: str, vicc: str = "single") -> tuple[str, ...]:
    return Recipe.model_validate({"method": {"name": name, "vicc": {"streams": vicc}}}).views


def test_an_unknown_method_is_refused_and_does_not_become_another():
    recipe = Recipe()
    unknown = recipe.model_copy(update={"method": recipe.method.model_copy(update={"name": "copr"})})
    known = ", ".join(METHODS)
    with pytest.raises(RecipeError, match=rf"method\.name=copr is unknown; use one of {known}; .*method\.name=cpr'\?"):
        build_method(unknown)


def test_an_unknown_strategy_or_backbone_is_refused_where_it_is_used():
    with pytest.raises(
        RecipeError, match=r"mining\.strategy=minrang is unknown; .*did you mean 'mining\.strategy=minr"
    ):
        CascadePlan(100, strategy="minrang")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_loaded_from_where_its_line_says(name):
    module = BACKBONES[name].place.partition(":")[0]
    recipe = Recipe.model_validate({"model": {"backbone": name}})
    made = build_backbone(recipe.model)
    assert isinstance(made, Trunk)
    assert any(kind.__module__ == module for kind in inspect.getmro(type(made)))


def test_rivals_are_the_strategies_of_one_step_that_read_no_labels():
    assert RIVALS[0] == "single"
    assert {"sum", "minrank"} <= set(RIVALS) <= STRATEGIES.keys() - {"cascade", "oracle"}
    assert all(isinstance(strategy_of(name), Strategy) for name in STRATEGIES)


def test_reading_a_recipe_loads_no_network():
    code = "from vidssl.recipe import load_recipe; load_recipe('vicc-tiny'); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
