"""`vidssl reproduce NAME`: from the archives to the paper's table, each step once.

REPRODUCTION/{reproduction.json, ledger.json, packed/, run/, results/STEP/, table.json, table.md, table.html}
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.keywords import ReproduceWords, own_words
from cluster.reproduce.estimates import rate_of
from cluster.reproduce.ledger import Ledger, Say, Step
from cluster.reproduce.names import Reproduction, reproduction
from cluster.reproduce.plan import make_plan, plan_lines
from cluster.reproduce.sources import sources_of
from cluster.reproduce.steps import RUN, Task, steps_of
from cluster.reproduce.table import table_text, write_table
from cluster.status import time_words
from vidssl.errors import DataError, RecipeError
from vidssl.files import storage_error
from vidssl.lock import held
from vidssl.marks import mark, refuse_foreign
from vidssl.recipe import load_recipe
from vidssl.records import read_record, write_record

__all__ = ["KIND", "begun", "run_reproduce", "settle"]

KIND: Final = "reproduction"
"""What the mark of its folder says."""
_BEGUN: Final = "reproduction.json"
_OWN: Final = ("data", "name", "trainer.storage")
_FREE: Final = ("videos", "splits", "ucf101", "hmdb51", "fold", "clips_s")
"""Words that may be others the next time: they add steps, or say where things lie."""


@dataclass(frozen=True)
class _Begun:
    """What a reproduction was begun as."""

    name: str
    words: tuple[str, ...]


def run_reproduce(name: str, settings: Sequence[str], out: str | None, dry_run: bool, say: Say) -> int:
    """Do what is not done of a reproduction; returns the exit code.

    Args:
        name: One of `cluster.reproduce.names.REPRODUCTIONS`.
        settings: Words of `ReproduceWords` and of the recipe.
        out: Its folder; None: runs/reproduce-NAME.
        dry_run: Print the plan and what is missing; make nothing.
        say: Takes each line for the user.

    Raises:
        RecipeError: an unknown name or word, or other words than it was begun with.
        DataError: something is missing, or its folder holds something else.
        VidsslError: as each step.
        KeyboardInterrupt: stopped; the same words go on.
    """
    entry, home = reproduction(name), Path(out or f"runs/reproduce-{name}").expanduser().resolve()
    own, words = own_words(ReproduceWords, settings)
    task = settle(entry, home, own, words)
    refuse_foreign(home, KIND, "type --out OTHER")
    decisive = tuple(word for word in settings if word.partition("=")[0] not in _FREE)
    _refuse_other(home, _Begun(name, decisive))
    steps = steps_of(task)
    plan = make_plan(task, steps, Ledger(home))
    for line in plan_lines(task, plan, own.clips_s):
        say(line)
    if dry_run:
        return 0
    if plan.missing:
        first, *others = plan.missing
        more = f" ({len(others)} more above)" if others else ""
        raise DataError(f"{name} cannot begin, for something is missing{more}: {first}")
    with held(home, "reproduce", say):
        try:
            mark(home, KIND)
            write_record(home / _BEGUN, _Begun(name, decisive))
        except OSError as error:
            raise storage_error(error, home, instead="type --out OTHER") from error
        _do(steps, Ledger(home), say)
        found = write_table(task, decisive)
    say("")
    say(table_text(found, min(max(shutil.get_terminal_size((120, 24)).columns, 60), 160)))
    say(f"table: {home / 'table.html'}, table.md, table.json")
    return 0


def settle(entry: Reproduction, home: Path, own: ReproduceWords, words: Sequence[str]) -> Task:
    """Everything that was typed, held against each other.

    Raises:
        RecipeError: a word that means nothing here, or as `vidssl.recipe.load_recipe`.
        DataError: no such split.
    """
    for word in words:
        if word.partition("=")[0] in _OWN:
            raise RecipeError(f"'{word}' cannot be set for a reproduction, which names its own; type --out FOLDER")
    if own.ucf101 is not None and entry.trains != "k400":
        raise RecipeError(f"ucf101={own.ucf101}: {entry.name} is pre-trained on UCF101; type videos={own.ucf101}")
    if entry.twin and (typed := next((w for w in ("videos", "splits", "hmdb51") if getattr(own, w) is not None), None)):
        raise RecipeError(f"{typed}={getattr(own, typed)}: {entry.name} makes its own videos; leave it out")
    packed = home / "packed" / entry.trains
    settings = (*entry.words, *words, f"data={packed}", f"name={RUN}", f"trainer.storage={home}")
    recipe = load_recipe(entry.recipe, settings)
    sources = sources_of(entry, own, recipe, home)
    if not any(source.folds for source in sources):
        raise DataError(f"fold={own.fold}: there is no such split; type fold=all")
    return Task(entry, home, recipe, settings, sources, rate_of(recipe, entry.twin, own.clips_s))


def _refuse_other(home: Path, now: _Begun) -> None:
    """A reproduction goes on with the words that it was begun with.

    Raises:
        RecipeError: they differ.
    """
    path = home / _BEGUN
    if not path.is_file():
        return
    before = begun(home)
    if before.name != now.name:
        raise RecipeError(f"{home} holds the reproduction {before.name}, not {now.name}; type --out OTHER")
    if sorted(before.words) != sorted(now.words):
        typed = " ".join(before.words) or "none"
        raise RecipeError(
            f"{home} was begun with the words: {typed}; type them again, or --out OTHER for another reproduction"
        )


def begun(home: Path) -> _Begun:
    """What the reproduction in a folder was begun as.

    Raises:
        CheckpointError: its file is damaged.
    """
    return read_record(_Begun, home / _BEGUN, "type the same words again")


def _do(steps: Sequence[Step], ledger: Ledger, say: Say) -> None:
    number = len(steps)
    for count, step in enumerate(steps, start=1):
        where = f"[{count}/{number}] {step.name}"
        if ledger.state(step) == "done":
            say(f"{where}: done before")
            continue
        say(f"{where}: {step.sentence}")
        began = time.monotonic()
        ledger.begin(step)
        step.make(say)
        ledger.end(step, time.monotonic() - began)
        say(f"{where}: done in {time_words(ledger.entries[step.name].seconds)}")
