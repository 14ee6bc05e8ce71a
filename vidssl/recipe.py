"""What is a run? One frozen, validated tree, read from `recipes/NAME.yaml` (or a path) and `key=value` words.

Every component receives its own section, never the whole tree. A recipe file opens with comment lines: its command,
the hardware and time it needs, the score to expect and where that score comes from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from vidssl.errors import RecipeError
from vidssl.plain import UNREADABLE, of_text, of_word, put, resolved
from vidssl.refusal import cut, near_key, one_line, refusal, shown
from vidssl.sections import (
    SAME_NUMBERS,
    Augment,
    Clips,
    Evaluation,
    Finetune,
    Iic,
    Loader,
    Mining,
    Model,
    Optim,
    Phase,
    Place,
    Pretext,
    Section,
    Source,
    Trainer,
    Vicc,
)
from vidssl.tables.lookup import did_you_mean
from vidssl.tables.methods import METHODS

__all__ = [
    "Augment",
    "Clips",
    "Evaluation",
    "Finetune",
    "Iic",
    "Loader",
    "Mining",
    "Model",
    "Optim",
    "Phase",
    "Pretext",
    "Recipe",
    "Trainer",
    "Vicc",
    "load_recipe",
    "phase_recipe",
    "reached",
    "recipe_from_file",
    "recipe_from_tree",
    "recipe_names",
    "take_word",
    "validated",
]

RECIPES = Path(__file__).parent / "recipes"


class Recipe(Section):
    """One run, whole."""

    name: str = Field(default="run", description="name of the run folder")
    data: Place | None = Field(
        default=None, description="what `vidssl pack` wrote: a folder, or s3://…, gs://…, https://…"
    )
    seed: int = Field(
        default=0, ge=0, le=2**32 - 1, description="start of every draw: order, windows, augmentation, weights"
    )
    clips: Clips = Clips()
    augment: Augment = Augment()
    loader: Loader = Loader()
    model: Model = Model()
    method: Pretext = Pretext()
    mining: Mining = Mining()
    optim: Optim = Optim()
    trainer: Trainer = Trainer()
    evaluation: Evaluation = Evaluation()
    finetune: Finetune = Finetune()
    phases: tuple[Phase, ...] = Field(default=(), description="trainings in a row; empty: this recipe is one training")

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        """A run lies in its storage and nowhere else."""
        outside = not name.strip(". ") or name != name.strip() or any(c in "/\\" or not c.isprintable() for c in name)
        if outside or len(name.encode()) > 200:
            raise ValueError(
                "a name is one folder below trainer.storage: letters, digits, '-', '_' and '.', no '/', not '.' or '..'; "
                "type name=NAME trainer.storage=FOLDER"
            )
        return name

    @model_validator(mode="after")
    def _meaningful(self) -> Recipe:
        method, mining = self.method, self.mining
        if method.streams in ("two", "cross") and method.view == method.second_view:
            raise ValueError(
                f"method.second_view={method.second_view} is the trained view too; {method.name} needs another stream"
            )
        if method.cascade:
            self._may_cascade()
        if self.mines and mining.where not in method.traits.mines_at:
            raise ValueError(
                f"method.name={method.name} mines in its own memories; type mining.where={method.traits.mines_at[0]}"
            )
        if self.mines and mining.traits.reads_labels and mining.where == "actor":
            raise ValueError(
                f"mining.strategy={mining.strategy} reads labels, which the bank never does; type mining.where=inline"
            )
        if mining.miners and self.trainer.deterministic:
            raise ValueError(
                f"mining.miners={mining.miners} mine whenever they can, and trainer.deterministic=true mines in order; type mining.miners=0"
            )
        if self.loader.decode == "mixed" and self.trainer.deterministic:
            raise ValueError(
                "loader.decode=mixed gives each decoder what it is fast enough for, and trainer.deterministic=true is to repeat; "
                "type loader.decode=auto"
            )
        return self

    def _may_cascade(self) -> None:
        """Refuse `method.cascade=true` where nothing would be mined by it."""
        method = self.method
        others = " or ".join(name for name, traits in METHODS.items() if traits.mines == "cascade")
        if method.traits.mines == "never":
            raise ValueError(
                f"method.cascade=true: {method.name} {method.traits.positives} and mines nothing; use it with {others}, "
                "or type method.name=cpr"
            )
        if method.traits.one_stage:
            raise ValueError(
                f"method.cascade=true: {method.name} mines in one stage; type method.name=cpr, or method.cascade=false"
            )
        if self.mining.where == "off":
            raise ValueError(
                "method.cascade=true with mining.where=off mines nothing; type mining.where="
                f"{method.traits.mines_at[0]}, or method.cascade=false"
            )

    @model_validator(mode="after")
    def _phases_in_order(self) -> Recipe:
        before: list[str] = []
        for phase in self.phases:
            for role, source in phase.sources.items():
                if source.phase not in before:
                    raise ValueError(
                        f"phase '{phase.name}' has {role}={source.phase}, which is no phase before it; there are {', '.join(before) or 'none'}"
                    )
            if phase.name in before:
                raise ValueError(f"two phases are named '{phase.name}'; give each its own name")
            before.append(phase.name)
        return self

    @property
    def mines(self) -> bool:
        """Whether this run trains with mined positives."""
        wanted = self.method.traits.mines
        return self.mining.where != "off" and (wanted == "always" or (wanted == "cascade" and self.method.cascade))

    @property
    def views(self) -> tuple[str, ...]:
        """Views the loader must make: the trained one first."""
        method = self.method
        if method.streams == "one":
            return (method.view,)
        return tuple(dict.fromkeys((method.view, method.second_view)))

    def fingerprint(self) -> str:
        """Hash of everything that changes the numbers: a resumed run must have the same one."""
        return hashlib.sha256(json.dumps(self._numbers(), sort_keys=True).encode()).hexdigest()[:16]

    def settings(self) -> dict[str, Any]:
        """What `fingerprint` is made of: dotted key → plain value, so that two recipes can be compared by name."""
        flat: dict[str, Any] = {}
        left = list(self._numbers().items())
        while left:
            key, value = left.pop(0)
            if isinstance(value, dict) and value:
                left = [(f"{key}.{name}", inner) for name, inner in value.items()] + left
            else:
                flat[key] = value
        return flat

    def _numbers(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude=SAME_NUMBERS)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML."""
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json")))


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (a shipped name or a path to a YAML file) with `key=value` words applied.

    `PHASE:key=value` sets a word of one phase, `*:key=value` of all.

    Raises:
        RecipeError: unknown recipe or key (with the nearest known one), wrong value, impossible combination.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise RecipeError(
            f"no recipe '{name}'; there are {', '.join(recipe_names())}{did_you_mean(name, recipe_names())}"
        )
    return recipe_from_file(path, overrides)


def recipe_from_file(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file with `key=value` words applied.

    Raises:
        RecipeError: as `load_recipe`, and a file that cannot be read or is no YAML.
    """
    try:
        tree = of_text(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is no text file (byte {error.start} is not UTF-8); name a recipe or a YAML file"
        ) from error
    except UNREADABLE as error:
        raise RecipeError(f"{path.name} cannot be read as YAML: {one_line(error)}") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} holds no mapping of recipe keys")
    return _with_words(tree, overrides, path.name)


def recipe_from_tree(tree: Mapping[str, object], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe out of a mapping of plain values, with `key=value` words applied.

    Raises:
        RecipeError: as `load_recipe`.
    """
    return _with_words(deepcopy(dict(tree)), overrides, "the recipe")


def take_word(words: Sequence[str], key: str) -> tuple[str | None, list[str]]:
    """The value of the last `key=value` among `words`, and the words without it."""
    values = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
    return (values[-1] if values else None), [word for word in words if not word.startswith(f"{key}=")]


def _with_words(tree: dict[str, Any], overrides: Sequence[str], origin: str) -> Recipe:
    for word in overrides:
        try:
            _apply(tree, word)
        except UNREADABLE as error:
            raise RecipeError(f"{origin} {cut(word)}: {one_line(error)}") from error
    try:
        plain = resolved(tree)
    except UNREADABLE as error:
        raise RecipeError(f"{origin}: {one_line(error)}") from error
    return validated(plain)


def _apply(tree: dict[str, Any], word: str) -> None:
    key, sep, given = word.partition("=")
    if not sep or not key:
        raise RecipeError(f"{shown(word)} is no setting; type key=value, e.g. trainer.workers=2")
    name, named, key = key.rpartition(":")
    _check_key(key)
    if named:
        _set_in_phases(tree, name, key, of_word(given))
    else:
        put(tree, key, of_word(given))


def phase_recipe(recipe: Recipe, phase: Phase, root: Path | None = None) -> Recipe:
    """The recipe of one phase: the whole one with the phase's words, its name, and its sources as runs beside it.

    Args:
        recipe: A recipe with phases.
        phase: One of them.
        root: Folder of the whole run; None: the sources stay open (a check before anything is trained).

    Raises:
        RecipeError: the phase's words are no keys, or its recipe is not valid.
    """
    tree = recipe.model_dump(mode="json", exclude={"phases"})
    tree["trainer"]["copy_to"] = None  # the whole is copied, its phases with it
    for key, value in phase.words.items():
        try:
            _check_key(key)
        except RecipeError as error:
            raise RecipeError(f"phase '{phase.name}': {error}") from error
        put(tree, key, value)
    for role, key in (("start", "method.first_from"), ("second", "method.second_from")):
        if role in phase.sources and root is not None:
            name, epoch = reached(recipe, phase.sources[role])
            put(tree, key, str(root / (name if epoch is None else f"{name}@{epoch}")))
    asked = {reached(recipe, s).epoch for p in recipe.phases for s in p.sources.values() if s.phase == phase.name}
    put(tree, "trainer.keep_epochs", sorted({*tree["trainer"]["keep_epochs"], *asked} - {None}))
    tree["name"] = phase.name
    tree["trainer"]["storage"] = tree["trainer"]["storage"] if root is None else str(root)
    try:
        return validated(tree)
    except RecipeError as error:
        raise RecipeError(f"phase '{phase.name}': {error}") from error


def reached(recipe: Recipe, source: Source) -> Source:
    """Without its epoch where the phase is counted in steps, or in fewer epochs: then its end is all there is."""
    words = next(phase.words for phase in recipe.phases if phase.name == source.phase)
    steps, epochs = (words.get(f"trainer.{key}", getattr(recipe.trainer, key)) for key in ("steps", "epochs"))
    ended = steps is None and isinstance(epochs, int) and 0 < (source.epoch or 0) <= epochs
    return source if ended else Source(source.phase, None)


def _set_in_phases(tree: Mapping[str, Any], name: str, key: str, value: object) -> None:
    """`PHASE:key=value`, or `*:key=value` for all: a phase's own words win over those of the whole recipe."""
    phases = [phase for phase in tree.get("phases") or [] if isinstance(phase, dict)]
    chosen = [phase for phase in phases if name in ("*", phase.get("name"))]
    if not chosen:
        known = ", ".join(str(phase.get("name")) for phase in phases) or "none in this recipe"
        raise RecipeError(f"{shown(f'{name}:{key}')} names no phase; there are {known} (or * for all)")
    for phase in chosen:
        phase["words"] = {**(phase.get("words") or {}), key: value}


def _check_roles(recipe: Recipe) -> None:
    """A phase goes on with the stream that its start trained, and looks through one that another phase trained."""
    of_phase = {phase.name: phase_recipe(recipe, phase) for phase in recipe.phases}
    for phase in recipe.phases:
        own = of_phase[phase.name].method
        wanted_by = {"start": own.view, "second": own.second_view}
        for role, source in phase.sources.items():
            wanted, other = wanted_by[role], of_phase[source.phase]
            trained = other.views if other.method.streams == "shared" else (other.method.view,)  # one network for all
            if wanted not in trained:
                raise RecipeError(
                    f"phase '{phase.name}' wants a {wanted} stream from {role}={source.phase}, which trains {' and '.join(trained)}; "
                    "name a phase that trains it, or change method.view"
                )


def validated(plain: object) -> Recipe:
    """A recipe out of plain values, as they are: no words, and nothing like `${seed}` is resolved.

    Raises:
        RecipeError: the first thing that is wrong, in one sentence.
    """
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(refusal(error, list(_keys()))) from error
    _check_roles(recipe)
    return recipe


def _keys(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _check_key(key: str) -> None:
    known = list(_keys())
    if key not in known:
        raise RecipeError(f"unknown key {shown(key)}{near_key(key, known)}")
