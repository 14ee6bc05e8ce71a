"""`vidssl train RECIPE …` and `vidssl train --resume RUN`: words → plan → training → evaluation, and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.copies.place import copy_place, run_address
from cluster.training.driver import Outcome, train
from cluster.training.phases import check_phase_words, phase_table, train_phases
from cluster.training.plan import Plan, plan_resume, plan_run, run_folder_of
from cluster.training.watch import Say
from vidssl.errors import RecipeError
from vidssl.recipe import Recipe, load_recipe, recipe_names, take_word
from vidssl.saved.run_folder import RunFolder, open_run

if TYPE_CHECKING:
    from pipelines.dataset.place import Address

__all__ = ["TrainWords", "run_train"]

After = Callable[[Path], object]
"""Evaluation and report of a run folder."""

STOPPED = 130


@dataclass(frozen=True)
class TrainWords:
    """What was typed after `vidssl train`.

    Attributes:
        recipe: Name or file.
        settings: `key=value` words.
        resume: A run to go on with, instead of a recipe.
        fresh: Remove what a run of the same name made first.
        phase: With `resume`: train this phase again, alone.
        argv: All of it, for the run's facts.
    """

    recipe: str | None
    settings: Sequence[str] = ()
    resume: str | None = None
    fresh: bool = False
    phase: str | None = None
    argv: Sequence[str] = ()


def run_train(typed: TrainWords, say: Say, evaluate: After | None) -> int:
    """Train, then evaluate; returns the exit code: 0 trained, 130 stopped with a checkpoint.

    Args:
        typed: What was typed.
        say: Prints a line.
        evaluate: Called with the folder of each finished training; None: only train.

    Raises:
        VidsslError: a mistake of the user; nothing was made or removed where it was found before training.
    """
    with _copied(typed, say) as typed:
        return _trained(typed, say, evaluate)


def _trained(typed: TrainWords, say: Say, evaluate: After | None) -> int:
    plan = _plan(typed)
    check_phase_words(plan.recipe, typed.phase)
    after = _carefully(evaluate, say)
    if plan.recipe.phases:
        outcome = train_phases(plan, say, only=typed.phase, after=after, argv=typed.argv)
    else:
        outcome = train(plan, say, typed.argv)
    path = plan.folder.path
    if outcome.stopped:
        say(f"stopped after step {outcome.steps} of {outcome.total_steps}; to go on: vidssl train --resume {path}")
        return STOPPED
    _ended(plan, outcome, say, after)
    return 0


@contextmanager
def _copied(typed: TrainWords, say: Say) -> Iterator[TrainWords]:
    """Where a copy of the run is kept in a store: fetch the run from there if it is not here, and keep the copy meanwhile.

    Yields:
        What was typed, with the run's folder in place of its copy's address.

    Raises:
        VidsslError: as `cluster.copies.fetch.bring_here`, `cluster.copies.claim.claimed` and `cluster.copies.keep.kept_copy`.
    """
    wanted = typed.resume is not None and run_address(typed.resume) is not None
    typed, address, folder = _with_copy(typed)
    if address is None:
        if (left := _copy_left_behind(typed, RunFolder(folder))) is not None:
            say(f"the copy of this run at {left} stays as it is: trainer.copy_to was not typed this time")
        yield typed
        return
    from cluster.copies.claim import claimed
    from cluster.copies.fetch import bring_here
    from cluster.copies.keep import kept_copy
    from pipelines.dataset.remote import RemoteStore

    store = RemoteStore(address)
    with claimed(store, "train", say) as claim:
        bring_here(store, folder, say, fresh=typed.fresh, wanted=wanted)
        with kept_copy(folder, store, claim, say, typed.fresh):
            yield typed


def _with_copy(typed: TrainWords) -> tuple[TrainWords, Address | None, Path]:
    """What was typed, without a run's address; where its copy is, if it has one; and the run's folder."""
    if typed.resume is None:
        recipe = load_recipe(typed.recipe, typed.settings) if typed.recipe is not None else Recipe()
        folder, to = run_folder_of(recipe).path, recipe.trainer.copy_to
        return typed, None if to is None else copy_place(to, folder.name), folder
    address = run_address(typed.resume)
    if address is not None:
        storage, words = take_word(typed.settings, "trainer.storage")
        folder = (Path(storage or "runs").expanduser() / address.name).resolve()
        words = [*words, f"trainer.copy_to={address.parent}"]
        return replace(typed, resume=str(folder), settings=words), address, folder
    run = open_run(typed.resume)
    to = take_word(typed.settings, "trainer.copy_to")[0] or run.read_recipe().trainer.copy_to
    return typed, None if to in (None, "null") else copy_place(to, run.path.name), run.path


def _copy_left_behind(typed: TrainWords, run: RunFolder) -> Address | None:
    """Where a run that goes on had its copy, when it is to have none from now on."""
    if typed.recipe is None or typed.resume is not None or typed.fresh or not run.recipe.is_file():
        return None
    try:
        to = run.read_recipe().trainer.copy_to
    except RecipeError:  # of another version: the plan says what is wrong
        return None
    return None if to is None else copy_place(to, run.path.name)


def _plan(typed: TrainWords) -> Plan:
    if typed.resume is not None:
        if typed.fresh:
            raise RecipeError("--resume goes on with a run and --fresh begins again; type only one of them")
        words = typed.settings if typed.recipe is None else [typed.recipe, *typed.settings]
        return plan_resume(typed.resume, words)
    if typed.recipe is None:
        raise RecipeError(
            f"no recipe named; type vidssl train RECIPE key=value …, with one of {', '.join(recipe_names())}"
        )
    if typed.phase is not None:
        raise RecipeError(
            f"--phase trains one phase of a run again; type vidssl train --resume RUN --phase {typed.phase}"
        )
    return plan_run(load_recipe(typed.recipe, typed.settings), typed.fresh)


def _ended(plan: Plan, outcome: Outcome, say: Say, after: After) -> None:
    if plan.recipe.phases:
        say(f"trained {outcome.steps} steps in {outcome.seconds:.0f} s")
        say(phase_table(plan.recipe, plan.folder.path))
        return
    if not plan.finished:
        say(f"trained {outcome.steps} steps in {outcome.seconds:.0f} s")
    elif (plan.folder.evaluation / "retrieval.json").is_file():
        return
    after(plan.folder.path)


def _carefully(evaluate: After | None, say: Say) -> After:
    """An evaluation that fails does not undo a training: it is said, with what to type, and the training stays finished."""

    def after(path: Path) -> None:
        if evaluate is None:
            return
        try:
            evaluate(path)
        except Exception as error:  # of whatever kind: hours of training lie behind it and are safe
            what = str(error) if str(error) else type(error).__name__
            say(f"trained, but not evaluated: {' '.join(what.split())}; to evaluate: vidssl evaluate {path}")

    return after
