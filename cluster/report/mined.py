"""What would other ways of mining find? The part of the report about `vidssl mine`, where its results lie in the run."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from cluster.mine.measure import Row
from cluster.mine.result import RESULT, MineResult
from cluster.mine.table import best_first
from cluster.mine.words import REFERENCES, Point
from cluster.page.parts import Section, bare, card, class_bars, table
from vidssl.records import read_record

__all__ = ["mined_part"]


def mined_part(home: Path, run: str) -> Section | None:
    """The best point of each strategy and space, and its classes; None where nobody has typed `vidssl mine`.

    Args:
        home: The folder of the run or card.
        run: As the user typed it.

    Raises:
        CheckpointError: mine.json is damaged.
    """
    path = home / "mine" / RESULT
    if not path.is_file():
        return None
    found = read_record(MineResult, path, f"type vidssl mine {run}")
    lead = (
        "What other ways of mining find in the same rows, offline: the best point of each strategy and space, by "
        f"{escape(found.metric.replace('_', ' ') if found.metric else 'nothing: there are no labels')}. Nothing was trained "
        "with them; aux, random and oracle are no recipe's: the aux view alone, lots, and the class mates."
    )
    return Section("Ways of mining", lead, _body(found))


def _body(found: MineResult) -> str:
    note = (
        f"{found.source}; {found.filled} videos, {found.queries} asked; main {found.views[0]}"
        + (f", aux {found.views[1]}" if len(found.views) > 1 else "")
        + f". {found.definition[0].upper()}{found.definition[1:]}; median over classes, and the worst class. "
        "The table is `vidssl mine`'s, whose mine.json holds every point."
    )
    body = card("Strategies and spaces", _table(found), escape(note))
    if found.best is None:
        return body
    name = found.best.point.describe()
    beside, others = next(iter(found.beside.items()), ("", {}))
    rows = [(one, share, others.get(one)) for one, share in found.per_class.items()]
    said = f"Bars: {name}; the tick: {beside}. In percent, best first."
    pasted = f"<p>To mine so: <code>{escape(' '.join(found.words))}</code></p>"
    return f"{body}{pasted}<h3>Class mining recall of the best point</h3><p>{escape(said)}</p>{class_bars(rows)}"


def _table(found: MineResult) -> str:
    at = found.best.topk if found.best else min(row.topk for row in found.rows)
    here = [row for row in found.rows if row.topk == at]
    ranked = best_first(here, found.metric) if found.metric else here
    ranked = sorted(ranked, key=lambda row: row.strategy in REFERENCES)  # no recipe can ask for those: they stand last
    own = found.own.point if found.own else None
    rows = [
        [
            row.strategy + (" (this run's)" if row.point == own else ""),
            row.space,
            f"S={row.stages} p={row.pool}" if row.strategy == "cascade" else f"p={row.pool}",
            bare(row.precision_at_k),
            bare(row.hit_at_k),
            bare(row.class_mining_recall_median),
            bare(row.class_mining_recall_least),
            f"{row.hubness:.1f}",
        ]
        for row in _one_each(ranked, own)
    ]
    head = ["percent", "space", "plan", f"precision@{at}", f"hit@{at}", "class recall", "worst class", "hubness"]
    return table(head, rows, strong=0 if found.best else None)


def _one_each(ranked: Iterable[Row], own: Point | None) -> list[Row]:
    seen: set[tuple[str, str]] = set()
    shown: list[Row] = []
    for row in ranked:
        if (row.strategy, row.space) not in seen or row.point == own:
            shown.append(row)
        seen.add((row.strategy, row.space))
    return shown
