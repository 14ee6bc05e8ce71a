"""Ours beside published: one line for each number of ours and each row of its paper, and in what the two differ.

Retrieval is measured on split 1. Of classifiers every split has a value and the mean of the splits is a line of its own: a published row
stands beside the value of the split that it states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Final

from cluster.evaluation.linear import LinearResult
from cluster.evaluation.retrieval import RetrievalResult
from cluster.finetune.results import FinetuneResult, Together
from cluster.report.published import facts_of
from cluster.reproduce.names import Measured
from cluster.reproduce.sources import Source
from cluster.reproduce.steps import LEFT, Task, measured_name, results_folder, view_of
from vidssl.evaluation.beside import Beside, Ours, beside
from vidssl.recipe import phase_recipe
from vidssl.records import read_record

__all__ = ["Line", "lines_of"]

_MEND: Final = "type vidssl reproduce again"
_UNSAID: Final = "not stated"
_MEAN: Final = "mean of "


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table; shares are in percent.

    Attributes:
        task: retrieval | linear | finetune.
        what: Method and variant; of a published row as its paper names it.
        data: Evaluated data set.
        stream: Of ours.
        split: Official split, or "mean of 3".
        ours: R@k by "1", "5" …, or "accuracy".
        each: Of a mean: the value of every split.
        interval95: Of the first of our values, where it is one split's.
        rivals: Name → the first of our metrics: untrained, colour histogram, chance.
        published: As `ours`; empty: no paper reports it.
        source: Where that was read.
        verdict: "same protocol", "same protocol as far as it is stated", "differs in …", or "nothing published".
        differences: Everything in which the two measurements differ.
    """

    task: str
    what: str
    data: str
    stream: str
    split: str
    ours: Mapping[str, float]
    each: tuple[float, ...] = ()
    interval95: tuple[float, float] | None = None
    rivals: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    verdict: str = "nothing published"
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Value:
    """A number of ours on one split."""

    facts: Ours
    values: Mapping[str, float]
    interval: tuple[float, float] | None = None
    rivals: Mapping[str, float] = field(default_factory=dict)


def lines_of(task: Task) -> list[Line]:
    """Every line that what lies in `results` gives, in the order of the reproduction."""
    return [line for source in task.evaluated for one in task.entry.measured for line in _lines(task, source, one)]


def _lines(task: Task, source: Source, one: Measured) -> Iterator[Line]:
    found = {fold: value for fold in source.folds if (value := _value(task, source, one, fold)) is not None}
    by_split = {str(fold): value for fold, value in found.items()}
    if len(found) > 1:
        by_split[f"{_MEAN}{len(found)}"] = _mean(list(found.values()))
    each = tuple(round(next(iter(value.values.values())), 2) for value in found.values())
    for split, value in by_split.items():
        rows = [] if task.entry.twin else _published(task, one, value)
        averaged = split.startswith(_MEAN)
        if not rows and len(by_split) > 1 and not averaged:
            continue  # the mean's line holds it
        for row in rows or [None]:
            line = _beside(one, source, split, value, row)
            yield replace(line, each=each) if averaged else line


def _beside(one: Measured, source: Source, split: str, value: _Value, row: Beside | None) -> Line:
    line = Line(
        task=one.task,
        what=("InfoNCE" if one.initial else "ours") if row is None else row.row.what,
        data="motions" if source.twin else source.data,
        stream=value.facts.stream or "",
        split=split,
        ours={key: round(number, 2) for key, number in value.values.items()},
        interval95=value.interval,
        rivals={key: round(number, 2) for key, number in value.rivals.items()},
    )
    if row is None:
        return line
    return replace(
        line,
        published=row.row.values,
        source=row.row.source,
        verdict=verdict_of(row.differences),
        differences=tuple(sorted(row.differences, key=lambda one: one.startswith(_UNSAID))),
    )


def verdict_of(differences: tuple[str, ...]) -> str:
    """In plain words: may the two numbers be compared?"""
    real = [one for one in differences if not one.startswith(_UNSAID)]
    if real:
        return f"differs in {len(real)} {'thing' if len(real) == 1 else 'things'}"
    return "same protocol as far as it is stated" if differences else "same protocol"


def _published(task: Task, one: Measured, value: _Value) -> list[Beside]:
    """Rows of the paper for just this number: its task, data, variant, network and split."""
    facts, wanted = value.facts, one.what
    rows = beside(one.task, facts, list(value.values)) if wanted else []
    return [
        found
        for found in rows
        if found.row.paper == task.entry.paper
        and found.row.what.startswith(wanted)
        and found.row.pretrained == facts.pretrained
        and found.row.split == facts.split
        and found.row.backbone in (None, facts.backbone)
        and found.row.stream in (None, facts.stream)
    ]


def _mean(values: list[_Value]) -> _Value:
    keys = list(values[0].values)
    facts = replace(values[0].facts, split=f"{_MEAN}{len(values)}")
    rivals = {
        key: mean(value.rivals[key] for value in values)
        for key in values[0].rivals
        if all(key in v.rivals for v in values)
    }
    return _Value(facts, {key: mean(value.values[key] for value in values) for key in keys}, None, rivals)


def _value(task: Task, source: Source, one: Measured, fold: int) -> _Value | None:
    """What was measured; None where it was not, or not yet."""
    folder = results_folder(task.home, measured_name(one, source.data, fold))
    if one.task != "retrieval" and one.role == "both" and (one.clips or one.task == "finetune"):
        return _fused(task, source, one, fold, folder)
    kind = one.task if not one.clips else "finetune"
    path = folder / LEFT[kind]
    if not path.is_file():
        return None
    if kind == "finetune":
        return _supervised(task, source, fold, path)
    return (_searched if kind == "retrieval" else _probed)(task, source, fold, path, one.initial)


def _searched(task: Task, source: Source, fold: int, path: Path, initial: bool) -> _Value | None:
    result = read_record(RetrievalResult, path, _MEND)
    if not result.results:
        return None
    trained = result.results["trained"]
    values = {k: 100 * share for k, share in trained.recall.items()}
    rivals = {name: 100 * row.r1 for name, row in result.results.items() if name in _RIVALS}
    return _Value(_ours(task, source, fold, facts_of(result), initial), values, _percent(trained.r1_interval95), rivals)


def _probed(task: Task, source: Source, fold: int, path: Path, initial: bool) -> _Value | None:
    result = read_record(LinearResult, path, _MEND)
    if not result.results:
        return None
    trained = result.results["trained"]
    rivals = {name: 100 * row.accuracy for name, row in result.results.items() if name in _RIVALS}
    facts = _ours(task, source, fold, facts_of(result), initial)
    return _Value(facts, {"accuracy": 100 * trained.accuracy}, _percent(trained.interval95), rivals)


_RIVALS: Final = ("untrained", "histogram", "chance")


def _supervised(task: Task, source: Source, fold: int, path: Path) -> _Value:
    result = read_record(FinetuneResult, path, _MEND)
    chosen = result.results.chosen
    rivals = {"chance": 100 * result.results.chance}
    return _Value(
        _ours(task, source, fold, facts_of(result)),
        {"accuracy": 100 * chosen.accuracy},
        _percent(chosen.interval95),
        rivals,
    )


def _fused(task: Task, source: Source, one: Measured, fold: int, folder: Path) -> _Value | None:
    path = folder / LEFT["fused"]
    if not path.is_file():
        return None
    together = read_record(Together, path, _MEND)
    alone = results_folder(task.home, measured_name(replace(one, role="first"), source.data, fold)) / LEFT["finetune"]
    first = _supervised(task, source, fold, alone)
    stream = " + ".join(view_of(task.recipe, role) for role in ("first", "second"))
    return _Value(replace(first.facts, stream=stream), {"accuracy": 100 * together.both}, None, first.rivals)


def _ours(task: Task, source: Source, fold: int, facts: Ours, initial: bool = False) -> Ours:
    """With what a single result cannot know: shown another split or data set, a network was still trained where it was trained."""
    if source.twin:
        return replace(facts, split=str(fold))
    phases = task.recipe.phases
    trained = phase_recipe(task.recipe, phases[0 if initial else -1]) if phases else task.recipe
    epochs = facts.epochs if trained.trainer.steps is not None else float(trained.trainer.epochs)
    return replace(facts, dataset=source.data, split=str(fold), pretrained=task.entry.trains, epochs=epochs)


def _percent(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (round(100 * interval[0], 2), round(100 * interval[1], 2))
