"""`vidssl bench headspace RUN`: how much faster could a faster loader make this training?

The run's recipe is trained twice for some steps, workers, bank and all, in a folder of its own: with its loader, and with a
few batches that are kept on the device and served again and again. What lies between the two is all that any loader can
bring, the cores that decoding takes from the step included.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.training.driver import train
from cluster.training.limit import mean_of
from cluster.training.plan import Plan, plan_run
from vidssl.errors import RecipeError
from vidssl.lock import held
from vidssl.recipe import Recipe, recipe_from_tree
from vidssl.records import write_record
from vidssl.saved.run_folder import RunFolder, open_run

__all__ = ["Headspace", "run_headspace"]

KEPT = 8
"""Batches that are served again and again."""

Say = Callable[[str], None]

_OURS = (
    "name",
    *(f"trainer.{key}" for key in ("storage", "steps", "epochs", "checkpoint_every_steps", "log_every_steps")),
)


@dataclass(frozen=True)
class Headspace:
    """What was measured; the content of RUN/headspace.json.

    Attributes:
        steps: Steps of each of both trainings; the first third is not counted.
        clips_per_s: With the run's loader, all workers together.
        wait_ratio: Share of that time in which the step waited for data.
        cached_clips_per_s: With batches that are always ready.
        data: Hash of the data.
    """

    steps: int
    clips_per_s: float
    wait_ratio: float
    cached_clips_per_s: float
    data: str

    @property
    def headspace(self) -> float:
        """How many times as fast a loader without cost would make the training."""
        return self.cached_clips_per_s / self.clips_per_s

    def sentence(self) -> str:
        """In words."""
        return (
            f"headspace {self.headspace:.2f}: {self.cached_clips_per_s:.1f} clips/s with batches that are always ready, "
            f"{self.clips_per_s:.1f} with the loader, which the step waited for {100 * self.wait_ratio:.0f} % of the time; "
            f"no loader can make this training more than {self.headspace:.2f} times as fast here"
        )


def run_headspace(path: str | Path, words: Sequence[str], steps: int, say: Say) -> Headspace:
    """Measure, print, and write RUN/headspace.json.

    Args:
        path: A run folder; it need not be finished, and is not gone on with.
        words: `key=value` of the recipe for both trainings, e.g. loader.threads=4.
        steps: Of each training.
        say: Prints a line.

    Raises:
        VidsslError: no run there, a run that is being trained, a recipe with phases, words or data that cannot be used.
    """
    folder = open_run(path)
    there = folder.read_recipe()
    if there.phases:
        raise RecipeError(
            f"{path} is a recipe with phases; type vidssl bench headspace with the folder of one of its phases"
        )
    with held(folder.path, "bench", say):
        scratch = Path(tempfile.mkdtemp(prefix=".headspace-", dir=folder.path))
        try:
            plans = [_plan(there, words, steps, scratch, name) for name in ("loader", "cached")]
            say(
                f"headspace of {folder.path}: {steps} steps with its loader, then {steps} with {KEPT} batches that are kept"
            )
            own, cached = (_steady(_trained(plan, kept)) for plan, kept in zip(plans, (0, KEPT), strict=True))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        found = Headspace(
            steps,
            own["clips_per_second"],
            own["wait_ratio"],
            cached["clips_per_second"],
            plans[0].checked.manifest.hash,
        )
        write_record(folder.path / "headspace.json", found)
    say(found.sentence())
    return found


def _plan(there: Recipe, words: Sequence[str], steps: int, scratch: Path, name: str) -> Plan:
    ours = [word for word in words if word.partition("=")[0] in _OURS]
    if ours:
        raise RecipeError(
            f"'{ours[0]}' cannot be set here: both trainings are short and are thrown away; type --steps N"
        )
    tree = recipe_from_tree(there.model_dump(mode="json"), words).model_dump(mode="json")
    tree["name"] = name
    tree["trainer"] |= {
        "storage": str(scratch),
        "steps": steps,
        "checkpoint_every_steps": steps,
        "log_every_steps": max(steps // 12, 1),
    }
    for part in ("optim", "method"):  # what is measured is the training after its warm-up
        tree[part]["warmup_steps"] = min(tree[part]["warmup_steps"], steps // 4)
    return plan_run(recipe_from_tree(tree))


def _trained(plan: Plan, kept: int) -> RunFolder:
    return train(replace(plan, kept=kept)).folder


def _steady(folder: RunFolder) -> dict[str, float]:
    """Columns of the rows after the first third; clips per second as the median."""
    rows = folder.read_log()
    rows = rows[len(rows) // 3 :]
    return mean_of(rows) | {"clips_per_second": statistics.median(row["clips_per_second"] for row in rows)}
