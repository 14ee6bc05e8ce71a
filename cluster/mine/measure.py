"""How well does one way of mining do on one bank? Offline: rows, their labels, seconds per point, no training.

Precision is of the positives themselves, not of an encoder trained with them. Only filled rows take part, so the pool of
a point is the pool it really has. `vidssl mine` measures here and now, `vidssl sweep` the same points by Ray Tune.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.mine.study import Rows, Study
from cluster.mine.words import Point
from vidssl.mining.cascade import mine
from vidssl.mining.exclusions import Exclusions, GroupIndex
from vidssl.mining.metrics import MiningQuality, drawn_positives, hubness, nearest_mates
from vidssl.mining.metrics import measure as measure_quality
from vidssl.mining.plan import CascadePlan
from vidssl.mining.space import SpaceKind

__all__ = ["Measured", "Row", "measure"]

TRACED = 1 << 26
"""Survivors of all stages that are kept for purity: 512 MB; of a larger bank fewer queries are traced."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """What one point gave; measures that need labels, or two views, are None without them.

    Attributes:
        strategy: As in the point, and so are space, stages, pool and topk.
        space: Rows in which was mined.
        stages: S.
        ratio: Share that each stage but the last keeps.
        pool: p, candidates of the last stage.
        topk: k.
        precision_at_k: Share of mined positives that have the query's class, mean over the queries.
        precision_se: Standard error of that mean.
        hit_at_k: Share of queries with at least one right positive.
        class_mining_recall_median: Median over classes of the share of a class's rows that another row of the class mined.
        class_mining_recall_least: Of the worst class.
        coverage: The same share over all rows of known class.
        sibling_rate: Share of mined positives that are cut from the query's own source.
        distinct_ratio: Different rows among the mined ones, of their number.
        hubness: Skewness of how often a row is mined: high where a few hubs serve everybody.
        agreement: Mean over mined positives of the lower of the two views' cosines, of the rows as they are.
        ms_per_query: Mining alone, beside whatever else ran.
        seconds: Whole trial.
    """

    strategy: str
    space: SpaceKind
    stages: int
    ratio: float
    pool: int
    topk: int
    precision_at_k: float | None
    precision_se: float | None
    hit_at_k: float | None
    class_mining_recall_median: float | None
    class_mining_recall_least: float | None
    coverage: float | None
    sibling_rate: float
    distinct_ratio: float
    hubness: float
    agreement: float | None
    ms_per_query: float
    seconds: float

    @property
    def point(self) -> Point:
        """What was asked for."""
        return Point(self.strategy, self.stages, self.pool, self.topk, self.space)


@dataclass(frozen=True)
class Measured:
    """A row, and what is no single number.

    Attributes:
        row: The numbers.
        recall: Class → class mining recall; empty without labels.
        purity: Share of the query's class after each stage; empty without labels.
    """

    row: Row
    recall: Mapping[int, float] = field(default_factory=dict)
    purity: tuple[float, ...] = ()


def measure(study: Study, point: Point, rows: Sequence[Rows] | None = None, threads: int = 1) -> Measured:
    """Mine every query as the point says and compare with the labels.

    Args:
        study: Rows, labels and queries.
        point: How.
        rows: `study.rows_in(point.space)`, where the caller has them already.
        threads: Threads of the selection.
    """
    began = time.perf_counter()
    plan = point.plan(study.n_filled, study.last_view)
    views = _ordered(study.rows_in(point.space) if rows is None else rows, point)
    exclude = GroupIndex(study.group).exclusions(study.group[study.queries])
    mining = time.perf_counter()
    ids = _ids(study, point, plan, views, exclude, threads)
    mined = time.perf_counter()
    quality = measure_quality(study.queries, ids, study.label, study.group) if study.labelled else None
    row = Row(
        strategy=point.strategy,
        space=point.space,
        stages=point.stages,
        ratio=plan.ratio if point.strategy == "cascade" and point.stages > 1 else 1.0,
        pool=plan.last_pool,
        topk=point.topk,
        **_by_labels(study, point, ids, quality),
        sibling_rate=_sibling_rate(study, ids),
        distinct_ratio=len(np.unique(ids[ids >= 0])) / max(int((ids >= 0).sum()), 1),
        hubness=hubness(ids, study.n_filled),
        agreement=_agreement(study, ids),
        ms_per_query=1e3 * (mined - mining) / len(study.queries),
        seconds=time.perf_counter() - began,
    )
    if quality is None:
        return Measured(row)
    purity = _purity(study, plan, views, exclude) if point.strategy == "cascade" else (quality.precision.micro,)
    return Measured(row, quality.recall_of_class, purity)


def _ordered(rows: Sequence[Rows], point: Point) -> list[Rows]:
    return list(rows[::-1]) if point.strategy == "aux" else list(rows)


def _ids(
    study: Study, point: Point, plan: CascadePlan, views: Sequence[Rows], exclude: Exclusions, threads: int
) -> Ids:
    """int64 [Q, k]."""
    query = study.queries
    if point.strategy == "random":
        return drawn_positives(np.arange(study.n_filled), exclude, point.topk)
    if point.strategy == "oracle":
        return nearest_mates(views[0], study.label, study.group, query, study.label[query], point.topk)
    return mine([view[query] for view in views], views, plan, exclude=exclude, threads=threads).ids


def _by_labels(study: Study, point: Point, ids_Qk: Ids, quality: MiningQuality | None) -> dict[str, float | None]:
    names = ("precision_at_k", "precision_se", "hit_at_k", "class_mining_recall_median")
    if quality is None:
        return dict.fromkeys((*names, "class_mining_recall_least", "coverage"))
    of_query, mined = study.label[study.queries], ids_Qk >= 0
    same = mined & (study.label[ids_Qk] == of_query[:, None])
    # the ceiling has to hand out k too, where class mates end sooner
    of = np.full(len(mined), point.topk) if point.strategy == "oracle" else np.maximum(mined.sum(1), 1)
    precision_Q = (same.sum(1) / of)[of_query >= 0]
    return {
        "precision_at_k": float(precision_Q.mean()),
        "precision_se": float(precision_Q.std() / np.sqrt(len(precision_Q))),
        "hit_at_k": quality.hit.micro,
        "class_mining_recall_median": quality.class_mining_recall.median,
        "class_mining_recall_least": quality.class_mining_recall.least,
        "coverage": quality.class_mining_recall.micro,
    }


def _sibling_rate(study: Study, ids_Qk: Ids) -> float:
    there = ids_Qk >= 0
    siblings = there & (study.group[ids_Qk] == study.group[study.queries][:, None])
    return float(siblings.sum()) / max(int(there.sum()), 1)


def _purity(study: Study, plan: CascadePlan, views: Sequence[Rows], exclude: Exclusions) -> tuple[float, ...]:
    """Share of the query's class after each stage, over as many of the first queries as may be traced, mixed by a step."""
    sizes = plan.sizes(study.n_filled)
    step = max(1, -(-len(study.queries) * sum(sizes) // TRACED))
    chosen = np.arange(0, len(study.queries), step)
    asked = study.queries[chosen]
    asked_by = Exclusions.from_lists([exclude.row(int(one)) for one in chosen])
    found = mine([view[asked] for view in views], views, plan, exclude=asked_by, trace=True)
    return measure_quality(asked, found.ids, study.label, study.group, found.stages).purity


def _agreement(study: Study, ids_Qk: Ids) -> float | None:
    """Lower cosine of the two views, mean over positives; block by block, because features are gathered here."""
    if study.aux is None:
        return None
    total, number = 0.0, int((ids_Qk >= 0).sum())
    for start in range(0, len(ids_Qk), 1024):
        ids, rows = ids_Qk[start : start + 1024], study.queries[start : start + 1024]
        cosines = [
            np.einsum("qd,qkd->qk", view[rows], view[np.maximum(ids, 0)], dtype=np.float32)
            for view in (study.main, study.aux)
        ]
        total += float(np.minimum(*cosines)[ids >= 0].sum())
    return total / max(number, 1)
