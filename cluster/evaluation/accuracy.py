"""A share of right answers with its interval beside its rivals: the row, its lines of text, its table on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cluster.evaluation.features import FeatureProtocol
from cluster.page.parts import bare, between, table
from vidssl.evaluation.retrieval import wilson

__all__ = [
    "Accuracy",
    "Interval",
    "accuracy_lines",
    "accuracy_table",
    "fusion_words",
    "interval95",
    "most_frequent",
    "name_of",
    "verdict",
]

Interval = tuple[float, float]

_NAMES: Final = {
    "trained": "trained encoder",
    "untrained": "untrained encoder",
    "histogram": "colour histogram",
    "chance": "most frequent class",
}
_FUSIONS: Final = {
    "sum": "sum of the two similarity matrices",
    "mean": "mean of the two probability vectors",
    "side by side": "unit features side by side",
}


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One line of a classifier's results; of `chance` only the accuracy is known.

    Attributes:
        accuracy: Share of the test videos that are right.
        interval95: Of that share.
        queries: Test videos.
    """

    accuracy: float
    interval95: Interval | None = None
    queries: int | None = None


def interval95(share: float, queries: int) -> Interval:
    """95 % interval of a share (Wilson), as it is stored."""
    low, high = wilson(share, queries)
    return round(low, 6), round(high, 6)


def most_frequent(train: NDArray[np.int64], test: NDArray[np.int64]) -> float:
    """What always naming the most frequent training class would score."""
    known = test[test >= 0]
    return round(float(np.mean(known == np.bincount(train[train >= 0]).argmax())), 6)


def fusion_words(views: tuple[str, ...], how: str) -> str:
    """How two streams are put together: sum | mean | side by side, in words; none where there is one."""
    return _FUSIONS[how] if len(views) > 1 else "none"


def name_of(name: str, about: FeatureProtocol) -> str:
    """Features by the name a reader knows."""
    return "both streams" if name == "trained" and " + " in about.view else _NAMES.get(name, name)


def accuracy_lines(head: str, rows: Mapping[str, Accuracy], notes: Mapping[str, str]) -> list[str]:
    """A line for each row under `head`, with its note behind it."""
    lines = [head, f"  {'':15}{'accuracy':>9}  (95 % interval)"]
    for name, row in rows.items():
        edges = f"({100 * row.interval95[0]:.1f} - {100 * row.interval95[1]:.1f})" if row.interval95 else ""
        lines.append(f"  {name:15}{100 * row.accuracy:8.1f}   {edges:16}{notes.get(name, '')}".rstrip())
    return lines


def accuracy_table(rows: Mapping[str, Accuracy], about: FeatureProtocol, **more: Mapping[str, float | None]) -> str:
    """The rows as a table, the trained encoder first; `more` are further columns of shares."""
    lines = [
        [name_of(name, about), bare(row.accuracy), between(row.interval95)]
        + [bare(column.get(name)) for column in more.values()]
        for name, row in rows.items()
    ]
    return table(["percent", "accuracy", "95 % interval", *more], lines, strong=0)


def verdict(rows: Mapping[str, Accuracy], about: FeatureProtocol) -> str:
    """Whether the trained encoder is ahead by more than the number of test videos can explain."""
    trained, rivals = rows["trained"], {name: row for name, row in rows.items() if name != "trained"}
    both = name_of("trained", about) == "both streams"
    who, s = ("Both streams together", "") if both else ("The trained encoder", "s")
    best = max(rivals, key=lambda name: rivals[name].accuracy)
    if trained.accuracy <= rivals[best].accuracy:
        return f"{who} do{'es' if s else ''} not beat: {_NAMES.get(best, best)}."
    highest = max((row.interval95 or (0.0, row.accuracy))[1] for row in rivals.values())
    if trained.interval95 is not None and trained.interval95[0] <= highest:
        return f"{who} score{s} highest, but the intervals overlap."
    return f"{who} beat{s} all the others by more than the choice of test videos can explain."
