"""`vidssl status [RUN]`: what a run is doing, or how it ended, from its folder alone: live, stopped, finished, failed or lost.

Nothing is asked of Ray and nothing is written (but with --clean), so that it works from any machine that sees the folder, and on runs whose
cluster is long gone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cluster.clean import clean
from vidssl.errors import CheckpointError, RecipeError
from vidssl.lock import owner_of
from vidssl.marks import LOCK, mark_of
from vidssl.recipe import Recipe
from vidssl.saved.checkpoint import latest_step
from vidssl.saved.phases import phase_folder, state_of
from vidssl.saved.run_folder import KIND, RunFolder

__all__ = ["Status", "run_status", "status_of", "time_words"]

State = Literal["training", "busy", "silent", "finished", "stopped", "failed", "lost", "begun", "waiting"]
_ROWS = 20
_PATIENCE = (120.0, 10.0)
"""A live run is silent after so many seconds without a log row, or after so many times what lies between its rows."""


@dataclass(frozen=True)
class Status:
    """One run.

    Attributes:
        name: Of its folder.
        state: training; busy (another command works there); silent (its process lives and logs nothing); finished; stopped;
            failed; lost (its process went without a word); begun (no checkpoint yet); waiting (a phase whose turn has not come).
        step: Optimizer steps logged, or done at the last checkpoint.
        total: Of the whole run; None where its folder does not say.
        rate: Clips per second, of the last rows.
        left_s: Seconds to the end, at that rate; None where it stands or cannot be told.
        words: What else there is to know: the owner, the last message, the loss, what to type.
    """

    name: str
    state: State
    step: int
    total: int | None
    rate: float | None = None
    left_s: float | None = None
    words: str = ""


def run_status(place: str | None, say: Callable[[str], None], clean_up: bool = False) -> int:
    """Print a line for each run.

    Args:
        place: A run's folder, or one that holds runs; None: `runs`.
        say: Prints a line.
        clean_up: Remove what commands left that were killed, see `cluster.clean`.

    Returns:
        0.

    Raises:
        CheckpointError: there is no run.
    """
    home = Path(place or "runs").expanduser()
    folders = [home] if _is_run(home) else sorted(path for path in _inside(home) if _is_run(path))
    if clean_up:
        return clean([*folders, *_inner(folders)], say)
    if not folders:
        raise CheckpointError(
            f"{home} is no run folder and holds none; type vidssl status RUN, or the folder given as trainer.storage"
        )
    found = [status for folder in folders for status in _with_phases(folder)]
    say(f"{'run':24} {'state':9} {'step':>13} {'clips/s':>8} {'left':>9}")
    for status in found:
        say(_line(status))
    return 0


def _inner(folders: Iterable[Path]) -> Iterator[Path]:
    """Folders of phases, which have locks of their own."""
    for folder in folders:
        yield from (path for path in folder.iterdir() if path.is_dir() and _is_run(path))


def _is_run(path: Path) -> bool:
    found = mark_of(path)
    return (found is not None and found.kind == KIND) or (path / "recipe.yaml").is_file()


def _inside(home: Path) -> Iterator[Path]:
    for path in home.iterdir() if home.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):
            yield path
            if not _is_run(path) and _is_run(path / "run"):  # the demo's
                yield path / "run"


def _with_phases(path: Path) -> Iterator[Status]:
    folder = RunFolder(path)
    try:
        recipe = folder.read_recipe()
    except RecipeError as error:
        yield Status(path.name, "failed", 0, None, words=str(error))
        return
    if not recipe.phases:
        yield status_of(folder, recipe)
        return
    for phase in recipe.phases:
        inner, name = phase_folder(path, phase.name), f"{path.name}/{phase.name}"
        if state_of(phase, path) == "waiting":
            yield Status(name, "waiting", 0, None)
        else:
            yield replace(status_of(inner, inner.read_recipe()), name=name)


def status_of(folder: RunFolder, recipe: Recipe) -> Status:
    """Where one run without phases stands.

    Args:
        folder: Of the run.
        recipe: Its own.
    """
    rows, saved = folder.read_log()[-_ROWS:], latest_step(folder) or 0
    step = int(rows[-1]["step"]) + 1 if rows else saved
    total, name = _total(folder, recipe), folder.path.name
    owner = owner_of(folder.path)
    if owner is not None:
        who = f"{owner.doing}, process {owner.pid} on {owner.host} since {owner.since}"
        if owner.doing != "train":
            return Status(name, "busy", step, total, words=who)
        rate, left = _pace(rows, recipe, step, total)
        quiet = _quiet_s(folder, rows)
        state: State = "silent" if quiet else "training"
        said = f"no step for {time_words(quiet)}; {who}" if quiet else f"{who}; {_news(folder, rows)}"
        return Status(name, state, step, total, rate, None if quiet else left, said)
    if failure := _failure(folder):
        return Status(name, "failed", step, total, words=failure)
    if total is not None and saved >= total:
        return Status(name, "finished", saved, total, words=_news(folder, rows))
    again = f"to go on: vidssl train --resume {folder.path}"
    if (folder.path / LOCK).is_file():
        return Status(
            name, "lost", step, total, words=f"its process went without a word, checkpoint of step {saved}; {again}"
        )
    if not saved:
        return Status(name, "begun", step, total, words=f"no checkpoint yet; {again}")
    return Status(name, "stopped", saved, total, words=f"{again}; {_news(folder, rows)}")


def _total(folder: RunFolder, recipe: Recipe) -> int | None:
    if recipe.trainer.steps is not None:
        return recipe.trainer.steps
    try:
        told = folder.read_facts().get("steps")
    except CheckpointError:
        return None
    return told if isinstance(told, int) else None


def _pace(
    rows: list[dict[str, float]], recipe: Recipe, step: int, total: int | None
) -> tuple[float | None, float | None]:
    """Clips per second over the last rows, and the seconds that are left at that rate."""
    rates = [row["clips_per_second"] for row in rows[1:] or rows if row.get("clips_per_second", 0) > 0]
    if not rates:
        return None, None
    rate = len(rates) / sum(1 / one for one in rates)
    clips = recipe.trainer.batch * recipe.trainer.workers * recipe.clips.per_video
    return rate, None if total is None else max(total - step, 0) * clips / rate


def _quiet_s(folder: RunFolder, rows: list[dict[str, float]]) -> float:
    """Seconds since the last log row, where that is longer than it should be; 0 where it is not."""
    changed = [path.stat().st_mtime for path in (folder.log, folder.recipe) if path.is_file()]
    gone, usual = time.time() - max(changed, default=time.time()), 0.0
    if len(rows) > 1:
        usual = (rows[-1]["step"] - rows[-2]["step"]) * rows[-1].get("step_ms", 0.0) / 1e3
    return gone if gone > max(_PATIENCE[0], _PATIENCE[1] * usual) else 0.0


def _failure(folder: RunFolder) -> str:
    try:
        return str(json.loads(folder.failure.read_text())["sentence"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _news(folder: RunFolder, rows: list[dict[str, float]]) -> str:
    """Loss, share of rows without mined positives, and the last sentence that was said between two steps."""
    parts = []
    if rows:
        last = rows[-1]
        parts.append(f"loss {last['loss']:.4f}")
        if "wait_ratio" in last:
            parts.append(f"wait {100 * last['wait_ratio']:.0f} %")
        if last.get("bank/fallback_ratio") is not None:
            parts.append(f"fallback {100 * last['bank/fallback_ratio']:.0f} %")
        if last["epoch"] >= 1 and last.get("health/collapsed", 0.0) > 0.5:
            parts.append("COLLAPSED")
    if said := _last_event(folder):
        parts.append(f"last: {said}")
    return ", ".join(parts)


def _last_event(folder: RunFolder) -> str:
    try:
        lines = folder.events.read_text().splitlines()
        return str(json.loads(lines[-1])["sentence"]) if lines else ""
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _line(status: Status) -> str:
    steps = f"{status.step}/{'?' if status.total is None else status.total}"
    rate = "" if status.rate is None else f"{status.rate:.1f}"
    left = "" if status.left_s is None else time_words(status.left_s)
    return f"{status.name:24} {status.state:9} {steps:>13} {rate:>8} {left:>9}  {status.words}".rstrip()


def time_words(seconds: float) -> str:
    """A length of time with the unit that fits it."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"
