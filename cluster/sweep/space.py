"""Which trainings does a sweep compare? A base recipe, axes and named arms → trainings that can be done and differ.

A point that a recipe or the data refuses is left out and said; so is one that would train what another one trains. Wherever
the cascade is searched, `single` (S=1) and `sum` are among the arms: they are what it has to beat.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cluster.mine.words import effective
from cluster.sweep.search import CYCLES, Sweep
from cluster.training.checks import check_recipe
from vidssl.errors import RecipeError, VidsslError
from vidssl.methods import mining_of
from vidssl.mining.plan import plan_from
from vidssl.recipe import Recipe, phase_recipe, recipe_from_tree

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest

__all__ = ["ARM", "Training", "are_numbers", "axes_of", "trainings_of"]

_CASCADE: Final = ("mining.stages", "mining.ratio", "mining.pool", "mining.strategy", "mining.last_view")
"""What says how the bank is narrowed: two recipes that differ in nothing else may still mine the same."""
ARM: Final = "arm"
"""The axis of named arms, which is no key."""
_RIVALS: Final = {"single (S=1)": "cascade", "sum": "sum"}


@dataclass(frozen=True)
class Training:
    """One training of a sweep.

    Attributes:
        arm: What it is, in words; trainings of one arm differ in nothing but the seed.
        seed: Of the training.
        recipe: Whole, with its name and storage below the sweep's folder.
        key: Hash of all that changes its numbers.
        pool: p, candidates that reach the last stage; None: nothing is mined.
        at: Axis → value; `arm` among them where there are several. A rival has no value on the axes of the cascade.
        rival: Whether it is what the cascade has to beat.
    """

    arm: str
    seed: int
    recipe: Recipe
    key: str
    pool: int | None
    at: Mapping[str, Any] = field(default_factory=dict)
    rival: bool = False


@dataclass(frozen=True)
class _Arm:
    label: str
    words: Mapping[str, Any]
    at: Mapping[str, Any]
    rival: bool = False


def trainings_of(sweep: Sweep, manifest: Manifest, storage: str) -> tuple[list[Training], list[str]]:
    """All trainings, of the first seed first, and a sentence for each point that is left out.

    Args:
        sweep: What was asked for.
        manifest: Of the data, which every training is held against.
        storage: Folder of the trainings' runs.

    Raises:
        RecipeError: no point is left, or a key that no recipe has.
    """
    chosen: dict[str, tuple[_Arm, Recipe]] = {}
    left_out: list[str] = []
    for arm in _arms(sweep):
        try:
            recipe = _recipe_of(sweep, arm, sweep.search.seeds[0])
            _check(recipe, manifest)
            sign = _signature(recipe, manifest)
        except VidsslError as error:
            left_out.append(f"left out: {arm.label}: {error}")
            continue
        if sign in chosen:
            left_out.append(f"left out: {arm.label} trains what {chosen[sign][0].label} trains")
        else:
            chosen[sign] = arm, recipe
    if not chosen:
        raise RecipeError(f"no point of this sweep can be trained; the first one was {left_out[0]}")
    made = [
        _training(_recipe_of(sweep, arm, seed), arm, seed, manifest, storage)
        for seed in sweep.search.seeds
        for arm, _ in chosen.values()
    ]
    return made, left_out


def axes_of(points: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Axis → its values: numbers in their order, others in that of the points."""
    axes: dict[str, list[Any]] = {}
    for point in points:
        for axis, value in point.items():
            values = axes.setdefault(axis, [])
            if value not in values:
                values.append(value)
    return {axis: sorted(values) if are_numbers(values) else values for axis, values in axes.items()}


def are_numbers(values: Iterable[Any]) -> bool:
    """Whether values have an order."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _arms(sweep: Sweep) -> Iterator[_Arm]:
    space, named = sweep.search.space, sweep.search.arms or {"": {}}
    mined = any(key.startswith("mining.") for key in (*space, *(key for words in named.values() for key in words)))
    rivals = _RIVALS if mined and _cascades(sweep.base) else {}
    free = {key: values for key, values in space.items() if key not in _CASCADE}
    for rival, strategy in rivals.items():
        alone = {"mining.strategy": strategy, "mining.stages": 1, "mining.ratio": None, "mining.pool": None}
        for at in _product(free):
            yield _Arm(_joined(rival, _said(free, at)), {**at, **alone}, {ARM: rival, **at}, rival=True)
    for name, words in named.items():
        who = {ARM: name or sweep.base.mining.strategy} if rivals or len(named) > 1 else {}
        for at in _product(space):
            yield _Arm(_joined(name, _said(space, at)) or sweep.base.name, {**words, **at}, {**who, **at})


def _cascades(base: Recipe) -> bool:
    """Whether what is trained mines in stages at all."""
    return base.mines and not base.method.traits.one_stage


def _product(space: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def _said(space: Mapping[str, object], at: Mapping[str, Any]) -> str:
    short = {key: key.rpartition(".")[2] for key in space}
    twice = {name for name in short.values() if list(short.values()).count(name) > 1}
    return " ".join(
        f"{key if short[key] in twice else short[key]}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in at.items()
    )


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _recipe_of(sweep: Sweep, arm: _Arm, seed: int) -> Recipe:
    words, tree = dict(arm.words), dict(sweep.tree)
    if CYCLES in words:
        tree["phases"] = _phases_to(int(words.pop(CYCLES)), tree.get("phases") or [], sweep.base.name)
    typed = [f"{key}={json.dumps(value)}" for key, value in words.items()]
    return recipe_from_tree(tree, [*sweep.words, *typed, f"seed={seed}"])


def _phases_to(cycle: int, phases: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    numbers = [re.search(r"-(\d+)$", str(phase["name"])) for phase in phases]
    kept = [phase for phase, at in zip(phases, numbers, strict=True) if at is not None and int(at[1]) <= cycle]
    most = max((int(at[1]) for at in numbers if at is not None), default=0)
    if not kept or cycle > most:
        raise RecipeError(
            f"{CYCLES}={cycle}: {name} has phases of cycles 0 to {most}" if kept else f"{name} has no cycles"
        )
    return kept


def _check(recipe: Recipe, manifest: Manifest) -> None:
    check_recipe(recipe, manifest=manifest)
    for phase in recipe.phases:
        check_recipe(phase_recipe(recipe, phase), phase.sources, manifest=manifest)
    if recipe.mines:
        plan_from(mining_of(recipe), _slots(recipe, manifest)).check_search()


def _slots(recipe: Recipe, manifest: Manifest) -> int:
    """N: of the queue where that is mined, else the training videos."""
    in_queue = recipe.mining.where == "inline" and recipe.method.traits.mines_in == "queue"
    return recipe.method.queue if in_queue else len(manifest.training_rows())


def _signature(recipe: Recipe, manifest: Manifest) -> str:
    """Equal for recipes that train the same, whatever the words for it."""
    settings = {key: value for key, value in recipe.settings().items() if key not in ("seed", "data")}
    if recipe.mines:
        slots = _slots(recipe, manifest)
        plan = plan_from(mining_of(recipe), slots)
        settings = {key: value for key, value in settings.items() if key not in _CASCADE}
        settings["kept"] = effective(plan.views, plan.sizes(slots), slots)
        settings["scores"] = "staged" if plan.traits.staged or plan.strategy == "single" else plan.strategy
    return json.dumps(settings, sort_keys=True, default=str)


def _training(recipe: Recipe, arm: _Arm, seed: int, manifest: Manifest, storage: str) -> Training:
    settings = {key: value for key, value in recipe.settings().items() if key != "data"}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
    slug = re.sub(r"[^a-z0-9.=-]+", "-", arm.label.lower()).strip("-")[:60]
    trainer = recipe.trainer.model_copy(update={"storage": storage})
    recipe = recipe.model_copy(update={"name": f"{slug}-seed-{seed}-{key[:6]}", "trainer": trainer})
    pool = plan_from(mining_of(recipe), _slots(recipe, manifest)).last_pool if recipe.mines else None
    return Training(arm.label, seed, recipe, key, pool, arm.at, arm.rival)
