"""Where does a run keep its things? The one place that knows the file names.

runs/NAME/
  recipe.yaml        resolved recipe, reads back as a recipe
  run.json           data hash, versions, hardware, command, times
  checkpoints/       step-00000100/{model.pt, rank-0.pt …, meta.json}, written aside and renamed
  bank/              snap-100/ … zarr, one per checkpoint kept
  tensorboard/       loss/ mining/ bank/ data/ health/
  log.jsonl          one line per logged step
  events.jsonl       what happened between them: attempts that ended, and why
  skipped.jsonl      one line per video that a rank skipped: which, where, why, when
  eval/              one JSON per evaluation, embeddings.zarr
  report.html
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

from vidssl.errors import CheckpointError, RecipeError
from vidssl.files import storage_error, write_whole
from vidssl.recipe import Recipe, recipe_from_file

__all__ = ["INSIDE", "KIND", "TOP", "RunFolder", "logged_row", "open_run"]

KIND = "run"
"""What the mark of a run folder says."""
_FINETUNING = ("last.pt", "events.jsonl", "failure.json", "STOP", "ray", ".*.part")
INSIDE = {
    "checkpoints": ("step-[0-9]*", ".step-[0-9]*"),
    "bank": ("snap-[0-9]*", ".snap-*", "attempt", "attempt.tmp", ".*.part"),
    "tensorboard": ("events.out.tfevents.*",),
    "eval": ("*.json", "*.npz", "*.zarr", "looked", ".*.part"),
    "hang": ("rank-*.txt",),
    "sweep": ("*.csv", "*.json", "*.png", "*.yaml", ".tune", ".*.part"),
    "finetune": _FINETUNING,
    "finetune-*": _FINETUNING,
}
"""Folder of a run → what we put there; a folder that holds more stays, with what is not ours."""
TOP = (
    "recipe.yaml",
    "run.json",
    "phases.json",
    "log.jsonl",
    "log.tmp",
    "events.jsonl",
    "skipped.jsonl",
    "failure.json",
    "report.html",
    "embeddings.zarr",
    "STOP",
    "RESIZE",
    "ranks.json",
    ".ray",
    ".*.part",
)
"""What else we put there."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def facts(self) -> Path:
        """What was run, on what, with which data."""
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def bank(self) -> Path:
        """Bank snapshots."""
        return self.path / "bank"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def log(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "log.jsonl"

    @property
    def events(self) -> Path:
        """What is worth a sentence between two steps (an attempt that ended, and why), one JSON object per line."""
        return self.path / "events.jsonl"

    @property
    def skipped(self) -> Path:
        """One JSON object per video that was bad when it was wanted."""
        return self.path / "skipped.jsonl"

    @property
    def evaluation(self) -> Path:
        """Results, each with its protocol."""
        return self.path / "eval"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def stop_flag(self) -> Path:
        """Exists while the run is asked to stop; workers look for it."""
        return self.path / "STOP"

    @property
    def resize_flag(self) -> Path:
        """Exists while the run is asked to begin again with more workers: workers end with a checkpoint, as for `stop_flag`."""
        return self.path / "RESIZE"

    @property
    def ranks(self) -> Path:
        """Process and node of every rank of the last attempt."""
        return self.path / "ranks.json"

    @property
    def failure(self) -> Path:
        """A user's mistake that a worker met: restarting would meet it again."""
        return self.path / "failure.json"

    def read_recipe(self) -> Recipe:
        """The recipe that this run was started with.

        Raises:
            RecipeError: it cannot be read, or is none of this version; names the file.
        """
        try:
            return recipe_from_file(self.recipe)
        except RecipeError as error:
            said = str(error)
            raise RecipeError(said if str(self.recipe) in said else f"{self.recipe}: {said}") from error

    def read_facts(self) -> dict[str, object]:
        """The content of run.json, empty when there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        try:
            facts = json.loads(self.facts.read_bytes()) if self.facts.is_file() else {}
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged_facts(self.facts, str(error)) from error
        if not isinstance(facts, dict):
            raise _damaged_facts(self.facts, "it holds no mapping")
        return facts

    def read_log(self) -> list[dict[str, float]]:
        """Logged steps, oldest first; a line torn by a kill is left out, and so (with a word) is any other that is no row."""
        lines = self.log.read_bytes().splitlines() if self.log.is_file() else []
        rows = [logged_row(line) for line in lines]
        other = [number for number, row in enumerate(rows[:-1], 1) if row is None]  # the last one may be torn
        if other:
            _log.warning(
                "%s: %d lines are no logged steps and are left out (first: %d)", self.log, len(other), other[0]
            )
        return [row for row in rows if row is not None]

    def forget_log_after(self, step: int) -> None:
        """Drop the logged steps from `step` on: a resumed run logs them again.

        Raises:
            StorageError: the log cannot be written; it is as it was.
        """
        rows = [row for row in self.read_log() if row["step"] < step]
        try:
            write_whole(self.log, "".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            raise storage_error(error, self.log) from error


def open_run(path: str | Path) -> RunFolder:
    """The run in `path`.

    Raises:
        CheckpointError: `path` holds no run.
    """
    folder = RunFolder(Path(path).expanduser().resolve())
    if not folder.recipe.is_file():
        raise CheckpointError(
            f"{path} is no run folder (it has no recipe.yaml); give the folder that `vidssl train` named, e.g. runs/cpr-tiny"
        )
    return folder


def logged_row(line: bytes) -> dict[str, float] | None:
    """The numbers of one line of log.jsonl; None where it is no logged step. What is not finite is no number."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _is_number(row.get("step")):
        return None
    return {key: value for key, value in row.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _damaged_facts(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({why}); it only tells how the run was begun: remove it to go on without"
    )
