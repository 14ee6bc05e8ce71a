"""The table as text, as Markdown, as a page and as JSON: ours beside published, with what separates the two."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Final

from cluster.page.parts import Section, page, table
from cluster.reproduce.lines import Line, lines_of
from cluster.reproduce.steps import Task
from vidssl.evaluation.tables import NAMES
from vidssl.files import storage_error, write_whole
from vidssl.records import write_record

__all__ = ["Table", "notes_of", "table_text", "write_table"]

_TASKS: Final = {"retrieval": "retrieval", "linear": "linear probe", "finetune": "fine-tuning"}
_HEAD: Final = ("measured", "split", "ours", "published", "comparable?")
_RIVALS: Final = ("untrained", "histogram", "chance")


@dataclass(frozen=True)
class Table:
    """The content of `table.json`.

    Attributes:
        name: Of the reproduction.
        recipe: What was trained.
        notes: What is not as published in all lines.
        lines: Ours beside published.
    """

    name: str
    recipe: str
    notes: tuple[str, ...]
    lines: tuple[Line, ...]


def write_table(task: Task, words: Sequence[str]) -> Table:
    """Write `table.json`, `table.md` and `table.html` from what lies in `results`.

    Args:
        task: Whose.
        words: The user's own, for the notes.

    Raises:
        CheckpointError: a result that cannot be read.
        StorageError: a file cannot be written.
    """
    found = Table(task.entry.name, task.entry.recipe, notes_of(task, words), tuple(lines_of(task)))
    try:
        write_record(task.home / "table.json", found)
        write_whole(task.home / "table.md", _markdown(found))
        write_whole(task.home / "table.html", _page(found))
    except OSError as error:
        raise storage_error(error, task.home) from error
    return found


def notes_of(task: Task, words: Sequence[str]) -> tuple[str, ...]:
    """What holds for every line."""
    notes = []
    if task.entry.twin:
        notes.append(
            "Videos that were generated here: no published number is for them, and the table shows that every step runs."
        )
    folds = {fold for source in task.evaluated for fold in source.folds}
    if folds - {1}:
        notes.append(
            "Pre-trained once, on the training split 1 as published: test videos of the other splits were among its unlabelled videos."
            if task.entry.trains == "ucf101"
            else "Pre-trained once, on Kinetics-400; no evaluated video was among its videos."
        )
    if words:
        notes.append(f"Not as the recipe states: {' '.join(words)}.")
    made = {source.options.flow for source in task.sources}
    if "dis" in made and "flow=tvl1" in task.entry.pack:
        notes.append("Optical flow by DIS, published by TV-L1.")
    return tuple(notes)


def table_text(found: Table, width: int) -> str:
    """The table for a terminal: a line for each number, and under it in what the two measurements differ."""
    rows = [_HEAD, *(_cells(line) for line in found.lines)]
    wide = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    out: list[str] = []
    for number, row in enumerate(rows):
        out.append("  ".join(cell.ljust(size) for cell, size in zip(row, wide, strict=True)).rstrip())
        if number:
            out += _wrapped("; ".join(found.lines[number - 1].differences), width, "      ")
    for note in found.notes:
        out += textwrap.wrap(note, width, subsequent_indent="  ")
    return "\n".join(out)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _cells(line: Line) -> tuple[str, ...]:
    keys = _shared(line)
    ours = "/".join(f"{line.ours[key]:.1f}" for key in keys)
    theirs = "/".join(f"{line.published[key]:.1f}" for key in keys) if line.published else "–"
    return (
        _named(line),
        line.split,
        f"{ours}{_spread(line)}",
        f"{theirs} ({line.source})" if line.source else theirs,
        line.verdict,
    )


def _shared(line: Line) -> list[str]:
    """Metrics that are shown: those that the paper reports too."""
    return [key for key in line.ours if not line.published or key in line.published]


def _named(line: Line) -> str:
    keys = _shared(line)
    metric = "" if "accuracy" in keys else " R@" + "/".join(keys)
    initial = ", InfoNCE" if line.what.startswith("InfoNCE") else ""
    return f"{_TASKS[line.task]}{metric}, {NAMES.get(line.data, line.data)}, {line.stream}{initial}"


def _full(line: Line) -> tuple[str, ...]:
    """The cells with all differences behind the verdict."""
    *others, verdict = _cells(line)
    return *others, f"{verdict}: {'; '.join(line.differences)}" if line.differences else verdict


def _spread(line: Line) -> str:
    if line.each:
        return f" ({', '.join(f'{one:.1f}' for one in line.each)})"
    return f" ({line.interval95[0]:.1f}–{line.interval95[1]:.1f})" if line.interval95 else ""


def _beaten(found: Table) -> list[tuple[str, ...]]:
    """The first metric of each line beside what it has to beat."""
    rows: dict[tuple[str, ...], None] = {}
    for line in found.lines:
        first, value = next(iter(line.ours.items()))
        name = _named(replace(line, ours={first: value}))
        rivals = (f"{line.rivals[one]:.1f}" if one in line.rivals else "–" for one in _RIVALS)
        rows[(name, line.split, f"{value:.1f}", *rivals)] = None
    return list(rows)


def _markdown(found: Table) -> str:
    lines = [
        f"# {found.name}",
        "",
        f"Recipe `{found.recipe}`; shares in percent.",
        "",
        *_grid(_HEAD, map(_full, found.lines)),
        "",
    ]
    lines += [*(f"- {note}" for note in found.notes), "", "What it has to beat:", ""]
    return "\n".join([*lines, *_grid(("measured", "split", "ours", *_RIVALS), _beaten(found))]).rstrip() + "\n"


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def _page(found: Table) -> str:
    lead = (
        "One line for each number of ours and each row of its paper. Behind a number stands its 95 % interval, behind a mean the "
        "splits that it is of. Where the protocols differ, the difference can be worth more than the method."
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in found.notes)
    beside = table(_HEAD, [_full(line) for line in found.lines], words=(0, 3, 4)) + notes
    rivals = table(("measured", "split", "ours", *_RIVALS), _beaten(found))
    sections = [
        Section("Ours beside published", lead, beside),
        Section("What it has to beat", "The same network before training, colours alone, and drawing lots.", rivals),
    ]
    return page(f"{found.name}, reproduced", f"recipe <b>{escape(found.recipe)}</b>, shares in percent", sections)
