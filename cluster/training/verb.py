"""`vidssl train RECIPE …` and `vidssl train --resume RUN`: words → plan → training → evaluation, and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.training.driver import Outcome, train
from cluster.training.phases import check_phase_words, phase_table, train_phases
from cluster.training.plan import Plan, plan_resume, plan_run
from cluster.training.watch import Say
from vidssl.errors import RecipeError
from vidssl.recipe import load_recipe, recipe_names

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
