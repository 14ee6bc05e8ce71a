"""One training of a sweep: to a rung, scored, to the next. Every part of it can be killed and goes on from its checkpoint.

A training is never cut in the middle by the search: it stops at a rung with a checkpoint, gives its cores, GPUs and bank
back, and is scored; so a search that ends it there leaves nothing behind. Going on is a resume, which is exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cluster.sweep.held_out import HeldOut, kept_at
from cluster.sweep.space import Training
from cluster.training.driver import train
from cluster.training.phases import train_phases
from cluster.training.plan import plan_run, run_folder_of
from vidssl.errors import StorageError
from vidssl.recipe import Recipe, phase_recipe
from vidssl.saved.phases import phase_folder
from vidssl.saved.run_folder import RunFolder

__all__ = ["State", "TrainedRow", "answer_folder", "rung_row", "train_to"]

State = Literal["goes on", "stopped", "finished"]


@dataclass(frozen=True)
class TrainedRow:
    """A line of sweep.csv: a training at a rung.

    Attributes:
        run: Name of its run folder.
        arm: What it is, in words.
        seed: Of the training.
        key: Hash of all that changes its numbers.
        percent: Of the training that was done.
        step: Optimizer steps by then.
        state: goes on | stopped (by successive halving) | finished.
        pool: p, candidates that reach the last stage; None: nothing is mined.
        r1: R@1 of the held-out training groups.
        low: 95 % interval of that over videos, lower end.
        high: Its upper end.
        chance: Of a random order.
        queries: Held-out videos.
        seconds: Of training and scoring, since the rung before.
    """

    run: str
    arm: str
    seed: int
    key: str
    percent: int
    step: int
    state: State
    pool: int | None
    r1: float
    low: float
    high: float
    chance: float
    queries: int
    seconds: float

    @property
    def point(self) -> tuple[str, int]:
        """Which later row replaces this one."""
        return self.key, self.percent

    @property
    def ended(self) -> bool:
        """Whether nothing is left to train."""
        return self.state != "goes on"


def train_to(recipe: Recipe, percent: int) -> int:
    """Train until `percent` of the steps are done; returns the steps.

    Args:
        recipe: With its name and storage. One with phases is trained to its end.
        percent: Above 0, at most 100.

    Raises:
        StorageError: somebody asked the run to stop.
        VidsslError: as `cluster.training.driver.train`.
    """
    plan = plan_run(recipe)
    if recipe.phases:
        outcome = train_phases(plan)
        if outcome.stopped:
            raise StorageError(f"{plan.folder.path} was asked to stop; type the same words again to go on")
        return outcome.steps
    total = plan.checked.total_steps
    until = math.ceil(total * percent / 100)
    if plan.finished or (plan.start or 0) >= until:
        return plan.start or 0
    outcome = train(replace(plan, until=until))
    if outcome.steps < until:
        raise StorageError(f"{plan.folder.path} was asked to stop; type the same words again to go on")
    return outcome.steps


def answer_folder(recipe: Recipe) -> RunFolder:
    """The run whose encoder is scored: of a recipe with phases, the last that trains the recipe's own view."""
    folder = run_folder_of(recipe)
    if not recipe.phases:
        return folder
    own = [phase.name for phase in recipe.phases if phase_recipe(recipe, phase).method.view == recipe.method.view]
    return phase_folder(folder.path, own[-1])


def rung_row(
    training: Training, percent: int, step: Callable[[], int], score: Callable[[Path], HeldOut], asked: str
) -> TrainedRow:
    """Train to a rung and score; what was scored there before is read.

    Args:
        training: Which one.
        percent: Of the rung.
        step: Trains to it and returns the steps.
        score: Asks the held-out videos.
        asked: Id of data, queries and protocol: an answer of another id does not count.
    """
    began, folder = time.monotonic(), answer_folder(training.recipe)
    done = step()
    found = kept_at(folder, done, asked) or score(folder.path)
    return TrainedRow(
        run=training.recipe.name,
        arm=training.arm,
        seed=training.seed,
        key=training.key,
        percent=percent,
        step=found.step,
        state="finished" if percent == 100 else "goes on",
        pool=training.pool,
        r1=found.r1,
        low=found.interval95[0],
        high=found.interval95[1],
        chance=found.chance,
        queries=len(found.videos),
        seconds=round(time.monotonic() - began, 1),
    )
