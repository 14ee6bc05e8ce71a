"""What was asked of a sweep of trainings? A recipe or an ablation, its `search:` section, and the words beside it.

An ablation is a file under `recipes/ablations/`: the name of a base recipe (`recipe: cpr-tiny`) and a `search:` section;
`recipe=OTHER` puts the same search on another base. Any other recipe file may have a `search:` section too. On the command
line `KEY=[A,B]` is an axis wherever KEY takes one value, and `KEY=[[…],[…]]` where it takes a list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from vidssl.errors import RecipeError, VidsslError
from vidssl.fields import Count, Place, Section, Share
from vidssl.plain import UNREADABLE, of_text, of_word
from vidssl.recipe import RECIPES, Recipe, load_recipe, recipe_from_tree, recipe_names, take_word
from vidssl.tables.lookup import did_you_mean

__all__ = ["CYCLES", "Sweep", "TrainSearch", "ablation_names", "level_of", "open_sweep"]

CYCLES: Final = "cycles"
"""An axis that is no key: phases named NAME-N up to this N."""
_IN_FILES: Final = ("space", "arms", "words")

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class TrainSearch(Section):
    """Which trainings are compared, and how."""

    recipe: Place | None = Field(default=None, description="the recipe that is varied; null: the one that is named")
    space: dict[str, list[Any]] = Field(
        default={}, description="in files: recipe key → its values; all of them are combined"
    )
    arms: dict[str, dict[str, Any]] = Field(
        default={},
        description="in files: name → recipe keys and their values there; each with every point of the space",
    )
    words: dict[str, Any] = Field(default={}, description="in files: recipe keys that are the same in all trainings")
    seeds: tuple[Seed, ...] = Field(
        default=(0,), min_length=1, max_length=1000, description="seeds of which every point is trained with each"
    )
    schedule: Literal["all", "asha"] = Field(
        default="all",
        description="all (every training to its end) | asha (successive halving: weak ones stop at a rung)",
    )
    sampler: Literal["grid", "random", "optuna"] = Field(
        default="grid",
        description="grid (every point) | random (`points` of them by lot) | optuna (`points` of them, each chosen by what the trainings before it found: Tree-structured Parzen estimator)",
    )
    points: Count | None = Field(
        default=None,
        description="random and optuna: most points that are trained, one with S=1 and one of sum among them; null: all",
    )
    first_rung: Share = Field(default=0.25, description="asha: share of a training at whose end it is first compared")
    reduction: int = Field(default=3, ge=2, le=100, description="asha: one in so many goes on from a rung to the next")
    at_once: Count | None = Field(
        default=None, description="most trainings at once; null: as many as the free cores and GPUs hold"
    )

    @property
    def rungs(self) -> tuple[int, ...]:
        """Percent of a training after which its encoder is scored; the last is 100."""
        if self.schedule == "all":
            return (100,)
        rungs, at = [], max(100 * self.first_rung, 1.0)
        while at < 100:
            rungs.append(int(at))
            at *= self.reduction
        return (*rungs, 100)


@dataclass(frozen=True)
class Sweep:
    """What was asked for, read and checked.

    Attributes:
        name: Of the recipe or ablation.
        base: The recipe that is varied.
        tree: The same as plain values, nothing resolved.
        words: What was typed for all trainings, with the file's own words in front.
        search: Axes, arms, seeds, schedule.
    """

    name: str
    base: Recipe
    tree: Mapping[str, Any]
    words: tuple[str, ...]
    search: TrainSearch


def ablation_names() -> list[str]:
    """Names of the ablations that ship with the package, `ablations/NAME`."""
    return sorted(f"ablations/{path.stem}" for path in (RECIPES / "ablations").glob("*.yaml"))


def level_of(name: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """`bank` or `train`, and the words without `level=`: a file that says what to search needs none.

    Raises:
        RecipeError: another level, or `level=bank` for such a file.
    """
    typed, rest = take_word(words, "level")
    if typed not in (None, "bank", "train"):
        raise RecipeError(f"level={typed} is unknown; type level= one of bank, train")
    named = bool(name) and not Path(name).is_dir() and _searches(name)
    if named and typed == "bank":
        raise RecipeError(
            f"{name} says what to train; type it without level=bank, or vidssl sweep RUN for points on its bank"
        )
    if typed == "train" and (not name or Path(name).is_dir()):
        raise RecipeError(
            "level=train trains a recipe; type vidssl sweep RECIPE level=train mining.stages=[1,3,5] data=PACKED"
        )
    return ("train" if named else typed or "bank"), rest


def _searches(name: str) -> bool:
    try:
        return "search" in _read(name)
    except VidsslError:
        return False


def open_sweep(name: str, words: Sequence[str]) -> Sweep:
    """Read a recipe or ablation and the words beside it.

    Args:
        name: A recipe, an ablation, or a YAML file of either.
        words: Keys of `TrainSearch`, and of the recipe.

    Raises:
        RecipeError: an unknown name or key, or a value that is not allowed.
    """
    tree = _read(name)
    section = dict(tree.pop("search", None) or {})
    base = tree.pop("recipe", None)
    own, rest = _split(words)
    search = _validated(({} if base is None else {"recipe": base}) | section | own)
    if search.recipe is not None:
        if base is not None and tree:
            raise RecipeError(
                f"{name}: '{next(iter(tree))}' beside recipe: and search: means nothing; put it under search: words:"
            )
        tree = _read(search.recipe)
        tree.pop("search", None)
    fixed, space = _axes(rest)
    search = search.model_copy(update={"space": {**search.space, **space}})
    typed = (*(_word(key, value) for key, value in search.words.items()), *fixed)
    if search.points is not None and search.sampler == "grid":
        raise RecipeError(
            f"points={search.points}: sampler=grid trains every point; type sampler=random or sampler=optuna"
        )
    for key in (*search.space, *(key for arm in search.arms.values() for key in arm)):
        _known(key)
    if not (search.space or search.arms):
        raise RecipeError(f"nothing to compare in {name}; type an axis, e.g. mining.stages=[1,3,5]")
    if empty := next((key for key, values in search.space.items() if not values), None):
        raise RecipeError(f"{empty}=[] has no value; type {empty}=[A,B]")
    return Sweep(name, recipe_from_tree(tree, typed), tree, typed, search)


def _read(name: str) -> dict[str, Any]:
    """A recipe file as plain values, its `${…}` as they stand."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = [*recipe_names(), *ablation_names()]
        raise RecipeError(f"no recipe '{name}'; there are {', '.join(known)}{did_you_mean(name, known)}")
    try:
        plain = of_text(path.read_text(encoding="utf-8"))
    except (OSError, *UNREADABLE):
        load_recipe(name)  # says what is wrong with the file
        raise
    if not isinstance(plain, dict):
        raise RecipeError(f"{path} holds no mapping of recipe keys")
    return {str(key): value for key, value in plain.items()}


def _split(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    own: dict[str, Any] = {}
    rest: list[str] = []
    for word in words:
        key, sep, value = word.partition("=")
        if not sep or not key:
            raise RecipeError(f"'{word}' is no setting; type key=value, e.g. mining.stages=[1,3,5]")
        if key in _IN_FILES:
            raise RecipeError(
                f"{key}= is said in a file; on the command line type the key itself, e.g. mining.stages=[1,3,5]"
            )
        if key == "seed":
            raise RecipeError(f"seed={value}: a sweep has seeds; type seeds=[{value}]")
        if key in TrainSearch.model_fields:
            own[key] = _value(word)
        else:
            rest.append(word)
    if isinstance(own.get("seeds"), int):
        own["seeds"] = [own["seeds"]]
    return own, rest


def _validated(section: Mapping[str, Any]) -> TrainSearch:
    try:
        return TrainSearch.model_validate(section)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        known = f"; there are {', '.join(TrainSearch.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise RecipeError(
            f"search: {key}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}{known}"
        ) from error


def _axes(words: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Words for all trainings, and those that are axes."""
    fixed: list[str] = []
    space: dict[str, list[Any]] = {}
    for word in words:
        key = word.partition("=")[0]
        value = _value(word)
        if isinstance(value, list) and (key == CYCLES or not _takes(_known(key), value)):
            space[key] = value
        elif key == CYCLES:
            space[key] = [value]
        else:
            fixed.append(word)
    return fixed, space


def _known(key: str) -> Any:
    """The type of a recipe's key.

    Raises:
        RecipeError: there is no such key.
    """
    if key == CYCLES:
        return int
    bare = key.rpartition(":")[2]
    whole: Any = Recipe
    for part in bare.split("."):
        fields = whole.model_fields if isinstance(whole, type) and issubclass(whole, BaseModel) else {}
        if part not in fields:
            load_recipe("cpr-tiny", [f"{bare}=null"])  # says that there is no such key, with the nearest one
            raise RecipeError(f"'{key}' is no key of a recipe")
        kind, more = fields[part].annotation, fields[part].metadata
        whole = Annotated[(kind, *more)] if more else kind
    if isinstance(whole, type) and issubclass(whole, BaseModel):
        raise RecipeError(f"'{key}' is a section, and an axis is one key; type e.g. mining.stages=[1,3,5]")
    return whole


def _takes(kind: Any, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def _value(word: str) -> Any:
    key, _, value = word.partition("=")
    try:
        return of_word(value)
    except UNREADABLE as error:
        raise RecipeError(f"{key}={value} cannot be read; lists are written {key}=[1,3,5]") from error


def _word(key: str, value: object) -> str:
    return f"{key}={json.dumps(value)}"
