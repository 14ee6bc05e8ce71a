"""Which run does `vidssl train …` mean, and may it begin? Everything is looked at here; nothing is made or removed.

| there is | typed | what happens |
|---|---|---|
| no run | `train RECIPE` | a new one |
| a run of this recipe and data | `train RECIPE`, `train --resume RUN` | it goes on from its last checkpoint |
| the same, for other workers | `train --resume RUN trainer.workers=N trainer.batch=B` | it goes on with them, with a sentence |
| the same, finished | either | nothing, in words |
| a run of another recipe or other data | `train RECIPE` | refused, with what differs |
| any run that we made | `train RECIPE --fresh` | removed, then a new one |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.launch import in_ray_job
from cluster.training.checks import Checked, check
from cluster.training.length import length_from, notes_on
from cluster.training.resolution import too_small
from vidssl.errors import BusyError, CheckpointError, RecipeError
from vidssl.lock import owner_of
from vidssl.marks import refuse_foreign
from vidssl.mining.reopen import source_of
from vidssl.recipe import Recipe, recipe_from_tree, take_word
from vidssl.saved.checkpoint import check_same_recipe, choose_checkpoint, latest_step, read_meta
from vidssl.saved.meta import ANYWHERE
from vidssl.saved.phases import early_ends
from vidssl.saved.run_folder import KIND, RunFolder, open_run
from vidssl.schedule import learning_rate

if TYPE_CHECKING:
    from pipelines.dataset.place import Address

__all__ = ["BankFrom", "Plan", "differences", "plan_resume", "plan_run", "run_folder_of"]

_SHOWN = 6
_SPLIT = (
    "trainer.workers",
    "trainer.batch",
    "trainer.accumulate",
    "trainer.min_workers",
    "trainer.wait_for_nodes",
)  # who takes how much of a step: a run may go on with others
_TYPED = (*_SPLIT, "trainer.copy_to")
"""Words that may be typed behind `--resume`."""
_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class BankFrom:
    """What was typed behind `bank=`.

    Attributes:
        step: Steps done at the checkpoint that the run goes on from; at a later one the run has a bank of its own again.
        source: A snapshot; None: an empty bank.
    """

    step: int
    source: str | None


@dataclass(frozen=True)
class Plan:
    """What a command is going to do.

    Attributes:
        checked: Recipe (with absolute paths), data and length.
        folder: Of the run.
        start: Steps done at the last checkpoint; None: there is none.
        exists: Whether a run lies there that goes on; False: a new one is made.
        fresh: Whether what lies there is removed first.
        bank: What the bank begins with, where that was typed.
        notes: Sentences for the user.
        kept: Batches that are served again and again instead of the loader's, to measure; 0: none.
        until: Steps after which it stops with a checkpoint, to go on later; None: at the end.
    """

    checked: Checked
    folder: RunFolder
    start: int | None = None
    exists: bool = False
    fresh: bool = False
    bank: BankFrom | None = None
    notes: tuple[str, ...] = ()
    kept: int = 0
    until: int | None = None

    @property
    def recipe(self) -> Recipe:
        """What is trained."""
        return self.checked.recipe

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train; of a recipe with phases, each phase says so itself."""
        return not self.recipe.phases and self.start is not None and self.start >= self.checked.total_steps


def plan_run(recipe: Recipe, fresh: bool = False) -> Plan:
    """What `vidssl train RECIPE` does.

    Args:
        recipe: As typed.
        fresh: Begin again, whatever run lies there.

    Raises:
        RecipeError, DataError, CheckpointError: as `cluster.training.checks.check`; a folder that we did not make; a run of
            another recipe or other data under this name.
    """
    folder = run_folder_of(recipe)
    exists = folder.recipe.is_file() and not fresh
    start = None if not exists else latest_step(folder)
    checked = check(recipe, sources=start is None)
    checked = replace(checked, recipe=_with_absolute_paths(recipe, checked.manifest.root))
    if not exists:
        refuse_foreign(folder.path, KIND, "type name=OTHER or trainer.storage=FOLDER")
        _refuse_busy(folder)
        notes = (*too_small(checked.recipe, checked.manifest), *early_ends(checked.recipe))
        return Plan(checked, folder, fresh=fresh, notes=notes)
    _refuse_another(folder, folder.read_recipe(), checked)
    return _going_on(checked, folder, start)


def plan_resume(path: str | Path, words: Sequence[str] = ()) -> Plan:
    """What `vidssl train --resume RUN` does.

    Args:
        path: The run folder.
        words: `trainer.workers=N`, `trainer.batch=B`: the workers to go on with. `bank=empty`, or `bank=SNAPSHOT`: what the
            bank begins with instead of its newest whole snapshot.

    Raises:
        CheckpointError: no run there, words that would change it, or a recipe.yaml that was changed since it began.
        BankError: no such snapshot.
        VidsslError: as `cluster.training.checks.check`.
    """
    folder = open_run(path)
    word, words = take_word(words, "bank")
    fixed = [word for word in words if word.partition("=")[0].rpartition(":")[2] not in _TYPED]
    if fixed:
        raise CheckpointError(
            f"a resumed run keeps its recipe, so '{fixed[0]}' cannot be set; type only: vidssl train --resume {path}, "
            f"for other workers with {_SPLIT[0]}=N {_SPLIT[1]}=B"
        )
    recipe, start = folder.read_recipe(), latest_step(folder)
    if any(word.partition("=")[0] == "trainer.workers" for word in words):  # a number that is typed is meant as such
        words = ["trainer.in_process=false", "trainer.min_workers=null", *words]
    recipe = recipe_from_tree(recipe.model_dump(mode="json"), words) if words else recipe
    checked = check(recipe, sources=start is None)
    _refuse_other_data(folder, checked)
    plan = _going_on(checked, folder, start)
    return plan if word is None else replace(plan, bank=_bank_from(word, plan))


def run_folder_of(recipe: Recipe) -> RunFolder:
    """The folder of a new run; inside a submitted job a relative one lies under the home directory, which outlives the job.

    Raises:
        RecipeError: `trainer.storage` is an address and not a folder.
    """
    given = recipe.trainer.storage
    if _ADDRESS.match(given):
        raise RecipeError(
            f"trainer.storage={given} is an address, and a run is written to a folder; type trainer.storage=FOLDER, one that all nodes share, and "
            f"trainer.copy_to={given} for a copy in a store"
        )
    storage = Path(given).expanduser()
    if not storage.is_absolute() and in_ray_job():
        storage = Path.home() / "vidssl" / storage
    return RunFolder((storage / recipe.name).resolve())


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """`key is A there and B here` for every key that both have with different values; empty: the same recipe.

    Keys that one side lacks are left out: another version of vidssl knew more or fewer.
    """
    both = [key for key in here if key in there and key not in ANYWHERE]
    return [f"{key} is {there[key]} there and {here[key]} here" for key in both if there[key] != here[key]]


def _bank_from(word: str, plan: Plan) -> BankFrom:
    recipe, kept = plan.recipe, "keeps no bank"
    if recipe.phases:
        kept = "is a recipe with phases, each with its own bank"
    if recipe.phases or not recipe.mines or recipe.mining.where != "actor":
        raise CheckpointError(f"{plan.folder.path} {kept}; type it without bank={word}")
    return BankFrom(plan.start or 0, source_of(word, plan.folder.bank))


def _refuse_busy(folder: RunFolder) -> None:
    """Others work in parts of a run too (an evaluation in `eval`, a fine-tuning, a sweep): they are not robbed of them."""
    inner = [path for path in folder.path.glob("*") if path.is_dir()]
    for owner, path in [(owner_of(path), path) for path in inner]:
        if owner is not None:
            raise BusyError(
                f"{path} is in use by `vidssl {owner.doing}` (process {owner.pid} on {owner.host}), since {owner.since}; "
                "wait for it, stop it, or type name=OTHER"
            )


def _going_on(checked: Checked, folder: RunFolder, start: int | None) -> Plan:
    """A run that exists, with a word on where it stands."""
    said: list[str] = []
    if start is not None:
        start = choose_checkpoint(folder, said.append)
    if start is not None:
        meta, recipe = read_meta(folder, start), checked.recipe
        if meta.data != checked.manifest.hash:
            raise _other_data(folder, checked, meta.data)
        check_same_recipe(folder, meta, recipe)
        length = length_from(recipe.trainer, len(checked.manifest.training_rows()), meta)
        learning_rate(recipe.optim, start, length.span)  # a warm-up that fills what the run is now is refused here
        checked = replace(checked, total_steps=length.total)
        said += notes_on(recipe, length, meta) if start < length.total else []
    total = checked.total_steps
    if checked.recipe.phases:
        where = f"{folder.path} holds this run: it goes on with what is not finished"
    elif start is None:
        where = f"{folder.path} holds this run without a checkpoint yet: it begins at its first step"
    elif start >= total:
        where = f"{folder.path} is finished ({start} of {total} steps), there is nothing to train; to begin again, type --fresh"
    else:
        where = f"{folder.path} holds this run: it goes on from step {start} of {total}"
    return Plan(checked, folder, start, exists=True, notes=(*said, where))


def _refuse_another(folder: RunFolder, there: Recipe, checked: Checked) -> None:
    differing = differences(there.settings(), checked.recipe.settings())
    if differing:
        changed = [word for word in _SPLIT if any(one.startswith(f"{word} is ") for one in differing)]
        now = " ".join(f"{word}={checked.recipe.settings()[word]}" for word in changed)
        also = (
            f"vidssl train --resume {folder.path} {now} to go on with them, " if len(changed) == len(differing) else ""
        )
        raise CheckpointError(
            f"{folder.path} holds a run of another recipe ({_shown(differing)}); "
            f"type {also}name=OTHER for another run, or --fresh to begin again"
        )
    _refuse_other_data(folder, checked)


def _refuse_other_data(folder: RunFolder, checked: Checked) -> None:
    told = folder.read_facts().get("data_hash")
    if told is not None and told != checked.manifest.hash:
        raise _other_data(folder, checked, told)


def _other_data(folder: RunFolder, checked: Checked, told: object) -> CheckpointError:
    return CheckpointError(
        f"{checked.recipe.data} holds other data (hash {checked.manifest.hash}) than the run {folder.path} was begun with ({told}); "
        "put that data back, type name=OTHER for another run, or --fresh to begin again"
    )


def _shown(differing: Sequence[str]) -> str:
    more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return "; ".join(differing[:_SHOWN]) + more


def _with_absolute_paths(recipe: Recipe, data: Path | Address) -> Recipe:
    """A run, and its workers on other machines, must find their files from any folder."""
    given = {"first_from": recipe.method.first_from, "second_from": recipe.method.second_from}
    found = {key: str(Path(path).expanduser().resolve()) for key, path in given.items() if path is not None}
    loader = recipe.loader
    if loader.cache is not None:
        loader = loader.model_copy(update={"cache": str(Path(loader.cache).expanduser().resolve())})
    changed = {"data": str(data), "loader": loader, "method": recipe.method.model_copy(update=found)}
    return recipe.model_copy(update=changed)
