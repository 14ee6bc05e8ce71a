"""`vidssl train` on a recipe with phases: one training after the other, each a run of its own, each started once its sources are finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.training.driver import Outcome, train
from cluster.training.folder import enter
from cluster.training.ground import stand_on
from cluster.training.plan import Plan, plan_resume, plan_run
from cluster.training.watch import Say
from vidssl.errors import CheckpointError, RecipeError
from vidssl.lock import held
from vidssl.recipe import Recipe, phase_recipe
from vidssl.records import read_record
from vidssl.saved.checkpoint import latest_step
from vidssl.saved.phases import check_sources, finish_phase, forget_phase, phase_folder, state_of
from vidssl.sections import Phase

__all__ = ["check_phase_words", "phase_table", "train_phases"]

After = Callable[[Path], Any]
"""What is done with the run folder of a finished phase (evaluation and report)."""


def train_phases(
    plan: Plan,
    say: Say = lambda line: None,
    *,
    only: str | None = None,
    after: After = lambda path: None,
    argv: Sequence[str] = (),
) -> Outcome:
    """Train what is not finished; a stopped phase is resumed exactly where it stands.

    Args:
        plan: Of a recipe with phases.
        say: Prints a line.
        only: Train this phase again, alone, from its finished sources.
        after: Called with the folder of each phase that is finished here.
        argv: The command, for the facts of each phase.

    Returns:
        Steps and seconds over all phases trained now; `stopped` when a phase was asked to stop.

    Raises:
        RecipeError: `only` names no phase.
        CheckpointError: a source is not finished.
        VidsslError: as `cluster.training.driver.train`.
    """
    wanted, root = _wanted(plan.recipe, only), plan.folder.path
    if only is not None:
        check_sources(wanted[0], plan.recipe, root)
    with ExitStack() as open_things:
        if root.exists():
            open_things.enter_context(held(root, "train", say))
        for note in plan.notes:
            say(note)
        own = [phase_recipe(plan.recipe, phase) for phase in wanted]
        devices = stand_on(own, root, plan.checked.manifest, open_things, lambda line: None)
        open_things.enter_context(held(root, "train", say))
        for note in enter(plan, argv, "cuda" if all(devices) else "cpu"):
            say(note)
        return _train_in_turn(plan, wanted, say, only is not None, after, argv)


def _train_in_turn(
    plan: Plan, wanted: Sequence[Phase], say: Say, again: bool, after: After, argv: Sequence[str]
) -> Outcome:
    began, steps, total = time.monotonic(), 0, 0
    recipe, root = plan.recipe, plan.folder.path
    for phase in wanted:
        if not again and _kept(phase, root, say):
            continue
        check_sources(phase, recipe, root)
        own = _plan_one(recipe, phase, root, again=again)
        if again:
            forget_phase(phase.name, root)
        outcome = train(own, say, argv)
        steps, total = steps + outcome.steps, total + outcome.total_steps
        if outcome.stopped:
            return Outcome(plan.folder, steps, total, time.monotonic() - began, True)
        finish_phase(phase, phase_folder(root, phase.name).read_recipe(), root)
        say(f"phase {phase.name}: finished after {outcome.steps} steps")
        after(outcome.folder.path)
    return Outcome(plan.folder, steps, total, time.monotonic() - began, False)


def _kept(phase: Phase, root: Path, say: Say) -> bool:
    """Whether a phase is finished and stays as it is."""
    state = state_of(phase, root)
    if state == "done":
        say(f"phase {phase.name}: finished before, kept")
    elif state == "stale":
        say(
            f"phase {phase.name}: kept, although a phase it came from was trained again since; "
            f"to make it again: vidssl train --resume {root} --phase {phase.name}"
        )
    return state in ("done", "stale")


def _plan_one(recipe: Recipe, phase: Phase, root: Path, *, again: bool) -> Plan:
    folder = phase_folder(root, phase.name)
    if not again and folder.recipe.is_file() and latest_step(folder) is not None:
        now = phase_recipe(recipe, phase).trainer
        return plan_resume(folder.path, [f"trainer.workers={now.workers}", f"trainer.batch={now.batch}"])
    return plan_run(phase_recipe(recipe, phase, root), fresh=True)


def _wanted(recipe: Recipe, only: str | None) -> tuple[Phase, ...]:
    if only is None:
        return recipe.phases
    found = tuple(phase for phase in recipe.phases if phase.name == only)
    if not found:
        names = ", ".join(phase.name for phase in recipe.phases) or "none"
        raise RecipeError(f"no phase '{only}' in this recipe; there are {names}")
    return found


def phase_table(recipe: Recipe, root: Path) -> str:
    """A line per phase: its state, what it trains from what, and R@1 where it has been evaluated."""
    lines = [f"  {'phase':14}{'state':9}{'trains':26}{'from':30}{'R@1':>6}"]
    for phase in recipe.phases:
        own = phase_recipe(recipe, phase)
        trains = f"{own.method.name} {own.method.view}" + (f" | {own.method.second_view}" if phase.second else "")
        source = ", ".join(
            f"{role} {name}" for role, name in (("start", phase.start), ("second", phase.second)) if name
        )
        lines.append(
            f"  {phase.name:14}{state_of(phase, root):9}{trains:26}{source or 'fresh weights':30}{_recall(root, phase):>6}"
        )
    return "\n".join(lines)


def _recall(root: Path, phase: Phase) -> str:
    from cluster.evaluation.retrieval import RetrievalResult

    folder = phase_folder(root, phase.name)
    path = folder.evaluation / "retrieval.json"
    if not path.is_file():
        return ""
    found = read_record(RetrievalResult, path, f"type vidssl evaluate {folder.path}")
    return f"{100 * found.results['trained'].r1:.1f}" if found.results else ""


def check_phase_words(recipe: Recipe, only: str | None) -> None:
    """Refuse `--phase` where it means nothing.

    Raises:
        CheckpointError: the run has no phases.
        RecipeError: no phase of that name.
    """
    if only is None:
        return
    if not recipe.phases:
        raise CheckpointError("this run is one training and has no phases; type it without --phase")
    _wanted(recipe, only)
