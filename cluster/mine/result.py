"""What does `vidssl mine` keep? `mine.json`: every point, what it was measured on, and the classes of the best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.mine.measure import Measured, Row
from cluster.mine.study import Study
from cluster.mine.table import find, recipe_words
from cluster.mine.words import Point
from vidssl.evaluation.protocol import Protocol
from vidssl.mining.metrics import CLASS_MINING_RECALL

__all__ = ["KIND", "RESULT", "MineResult", "MinedRow", "mine_result"]

KIND = "mine"
"""What the mark of such a folder says."""
RESULT = "mine.json"


@dataclass(frozen=True)
class MinedRow(Row):
    """A row of the table with its purity.

    Attributes:
        purity: Share of the query's class after each stage; empty without labels.
    """

    purity: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MineResult:
    """The content of `mine.json`.

    Attributes:
        source: The rows, in words.
        data_hash: Of the data; empty when unknown.
        slots: N.
        filled: Of those.
        queries: Videos that mined.
        views: Main and aux, or main alone.
        last_view: View of the last stage.
        classes: How many there are.
        class_size: Median.
        chance: Precision of lots; None without labels.
        spaces: Space → how it was fitted, in words.
        definition: Of the class mining recall.
        metric: What ranked; None without labels.
        rows: All points.
        best: The best of them at k; None without labels.
        words: `key=value` words of a recipe that mines so.
        own: What the run itself mines with, where that was tried.
        per_class: Class → class mining recall of the best row.
        beside: What it stands beside (`single raw`: the main view alone; `this run's`) → class → class mining recall.
        protocol: How the rows were embedded; None of a bank.
    """

    source: str
    data_hash: str
    slots: int
    filled: int
    queries: int
    views: tuple[str, ...]
    last_view: str
    classes: int
    class_size: int | None
    chance: float | None
    spaces: Mapping[str, str] = field(default_factory=dict)
    definition: str
    metric: str | None
    rows: tuple[MinedRow, ...]
    best: Row | None = None
    words: tuple[str, ...] = ()
    own: Row | None = None
    per_class: Mapping[str, float]
    beside: Mapping[str, Mapping[str, float]]
    protocol: Protocol | None = None


def mine_result(
    measured: Sequence[Measured], study: Study, metric: str, k: int, own: Point | None, protocol: Protocol | None
) -> MineResult:
    """What is kept of measured points."""
    labelled = study.labelled
    rows = [one.row for one in measured]
    best = find(rows, metric, k).best if labelled else None
    ours = next((row for row in rows if row.point == own), None)
    by_point = {one.row.point: one for one in measured}
    beside = {}
    if best is not None:
        single = [row for row in rows if (row.strategy, row.topk) == ("single", best.topk)]
        plain = next((row for row in single if row.space == "raw"), single[0])
        beside = {f"single {plain.space}": _per_class(by_point[plain.point], study)}
    if best is not None and ours is not None:
        beside["this run's"] = _per_class(by_point[ours.point], study)
    sizes = study.class_sizes
    return MineResult(
        source=study.source,
        data_hash=study.data,
        slots=study.n_slots,
        filled=study.n_filled,
        queries=len(study.queries),
        views=study.views,
        last_view=study.last_view,
        classes=len(sizes),
        class_size=int(sorted(sizes)[len(sizes) // 2]) if labelled else None,
        chance=study.chance() if labelled else None,
        spaces={row.space: study.space(row.space).why for row in rows},
        definition=CLASS_MINING_RECALL,
        metric=metric if labelled else None,
        rows=tuple(MinedRow(**vars(one.row), purity=one.purity) for one in measured),
        best=best,
        words=tuple(recipe_words(best, study)) if best else (),
        own=ours,
        per_class=_per_class(by_point[best.point], study) if best else {},
        beside=beside,
        protocol=protocol,
    )


def _per_class(one: Measured, study: Study) -> dict[str, float]:
    return {study.class_name(label): share for label, share in one.recall.items()}
