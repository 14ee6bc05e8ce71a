"""What is going to happen? Steps with their state and hours, the disk, and what is missing: on paper, without data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.reproduce.estimates import disk
from cluster.reproduce.ledger import Ledger, State, Step
from cluster.reproduce.steps import RUN, Task, packed_name
from cluster.status import time_words
from pipelines.packing.flow import megabytes

__all__ = ["Plan", "make_plan", "plan_lines"]


@dataclass(frozen=True)
class Plan:
    """What is to be done, and whether it can be.

    Attributes:
        steps: All.
        states: Of each, in their order.
        bytes: Free bytes that are needed.
        free: Free bytes where it is written.
        missing: What keeps it from being done, a sentence each.
        notes: What may surprise.
    """

    steps: tuple[Step, ...]
    states: tuple[State, ...]
    bytes: float
    free: float
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def left(self) -> float:
        """Seconds of what is not done."""
        return sum(step.seconds for step, state in zip(self.steps, self.states, strict=True) if state != "done")


def make_plan(task: Task, steps: Sequence[Step], ledger: Ledger) -> Plan:
    """Look at everything; nothing is made."""
    states: tuple[State, ...] = tuple(ledger.state(step) for step in steps)
    open_steps = [step for step, state in zip(steps, states, strict=True) if state != "done"]
    trains = any(step.name == RUN for step in open_steps)
    packs = [step.bytes for step in open_steps if step.bytes]
    need = disk(packs, max(len(task.recipe.phases), 1) if trains else 0)
    free = float(shutil.disk_usage(next(path for path in (task.home, *task.home.parents) if path.exists())).free)
    packed = {packed_name(source, fold) for source in task.sources for fold in {1, *source.folds}}
    open_packs = packed & {step.name for step in open_steps}
    wanted = [source for source in task.sources if any(name.startswith(packed_name(source, 1)) for name in open_packs)]
    missing = [one for source in wanted for one in source.missing()]
    if need > free:
        missing.append(
            f"disk: about {megabytes(need)} are needed where {task.home} is written, and {megabytes(free)} are free"
        )
    notes = [one for source in task.sources for one in source.gaps()]
    return Plan(tuple(steps), states, need, free, tuple(dict.fromkeys(missing)), (*notes, *_devices(task)))


def _devices(task: Task) -> list[str]:
    """A sentence where the recipe was made for GPUs that are not here."""
    import torch

    wanted, here = task.recipe.trainer.workers, torch.cuda.device_count()
    if task.entry.twin or here >= wanted or task.recipe.trainer.device == "cpu":
        return []
    return [f"the recipe is made for {wanted} GPU{'s' if wanted > 1 else ''} and this machine has {here}"]


def plan_lines(task: Task, plan: Plan, given: float | None) -> list[str]:
    """The plan for a terminal."""
    wide = max(len(step.name) for step in plan.steps) + 2
    out = [f"{task.entry.name}: {task.entry.paper} by the recipe {task.entry.recipe}, in {task.home}"]
    out.append(f"  {'step':{wide}}{'state':8}{'about':>9}  what")
    for step, state in zip(plan.steps, plan.states, strict=True):
        out.append(f"  {step.name:{wide}}{state:8}{_about(step.seconds):>9}  {step.sentence}")
        for part in step.parts:
            out.append(f"    {part.name:{wide - 2}}{part.state if state != 'done' else '':8}{_about(part.seconds):>9}")
    whole = sum(step.seconds for step in plan.steps)
    how = "as typed" if given else "assumed: type clips_s= what your training logs"
    out.append(f"in all about {_about(whole)}, of them {_about(plan.left)} to do, at {task.rate:g} clips/s ({how})")
    out.append(f"packing is that of the {len(os.sched_getaffinity(0))} cores of this machine")
    out.append(f"disk: about {megabytes(plan.bytes)} more in {_place(task.home)} ({megabytes(plan.free)} are free)")
    out += [f"note: {note}" for note in plan.notes]
    out += [f"missing: {one}" for one in plan.missing] or ["nothing is missing"]
    return out


def _about(seconds: float) -> str:
    return time_words(seconds) if seconds >= 1 else "moments"


def _place(home: Path) -> str:
    return str(home.parent) if home.parent != home else str(home)
