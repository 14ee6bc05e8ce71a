"""How good is what was mined? Labels are read here and nowhere else in mining.

precision@k is the share of mined videos with the query's class, hit@k whether there is one. The *class mining recall* of
a class is the share of its videos that were mined by another video of the class, when every video asks once; its median
over classes is the headline, and the same share over all videos is *coverage*. CPR's abstract gives a median class mining
recall (83.3 against 77.8) without a definition that could be computed again: ours is not called the paper's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.cascade import Backend, mine
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan
from vidssl.mining.rows import Table
from vidssl.mining.rows import table as engine_table
from vidssl.tables.strategies import RIVALS

__all__ = [
    "CLASS_MINING_RECALL",
    "MiningMonitor",
    "MiningQuality",
    "Spread",
    "agreement",
    "best_positives",
    "drawn_positives",
    "hubness",
    "measure",
    "nearest_mates",
    "random_positives",
    "rivals",
]

CLASS_MINING_RECALL = "class mining recall: share of a class's videos that another video of the class mined"
"""The definition, as it stands wherever the number does."""

_SMALL = 20_000
"""Rows of a bank that may be copied for every query."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """One measure over classes: every class counts once, however many videos it has.

    Attributes:
        median: Median over classes (mean of the middle two for an even number).
        lower: First quartile.
        upper: Third quartile.
        least: The worst class.
        micro: Mean over queries (of class mining recall over videos, which is coverage).
    """

    median: float
    lower: float
    upper: float
    least: float
    micro: float


@dataclass(frozen=True)
class MiningQuality:
    """Quality of one batch of mined ids, or of a whole bank's.

    Attributes:
        precision: precision@k; of the mined, so a query with fewer than k counts what it has.
        hit: hit@k.
        class_mining_recall: Share of each class that was mined by its own; `micro` is coverage.
        recall_of_class: The same by class.
        sibling_rate: Share of mined that are cut from the query's source (0 by construction).
        distinct: Different videos among the mined, relative to their number: low means a few hubs serve everyone.
        mined: Mean positives per query.
        last_pool: p of the plan, None where there is none.
        purity: Share of the query's class after each stage.
    """

    precision: Spread
    hit: Spread
    class_mining_recall: Spread
    recall_of_class: Mapping[int, float]
    sibling_rate: float
    distinct: float
    mined: float
    last_pool: int | None = None
    purity: tuple[float, ...] = ()


def measure(
    query: Ids, ids: Ids, label: Ids, group: Ids | None = None, stages: Sequence[Ids] = (), last_pool: int | None = None
) -> MiningQuality:
    """Quality of mined ids.

    Args:
        query: int64 [Q], slots that mined; those with label -1 are left out.
        ids: int64 [Q, k], what they mined, -1 padded.
        label: int64 [N]; -1 also where a slot is empty, which nobody could mine.
        group: int64 [N]; None: no siblings.
        stages: Survivors of each stage, [Q, size] -1 padded, from `mine(..., trace=True)`.
        last_pool: p, to be stated with the result.
    """
    known = label[query] >= 0
    query, ids = query[known], ids[known]
    there = ids >= 0
    same = there & (label[ids] == label[query][:, None])
    count = there.sum(1)
    precision = np.divide(same.sum(1), count, out=np.zeros(len(query)), where=count > 0)
    of_class = _recall_of_class(query, ids[same], label)
    found = len(np.unique(ids[same]))
    siblings = 0.0 if group is None else _ratio((there & (group[ids] == group[query][:, None])).sum(), there.sum())
    return MiningQuality(
        precision=_over_classes(precision, label[query]),
        hit=_over_classes(same.any(1).astype(float), label[query]),
        class_mining_recall=_spread(
            np.array(list(of_class.values())), _ratio(found, np.isin(label, list(of_class)).sum())
        ),
        recall_of_class=of_class,
        sibling_rate=siblings,
        distinct=_ratio(len(np.unique(ids[there])), there.sum()),
        mined=float(count.mean()) if len(count) else 0.0,
        last_pool=last_pool,
        purity=tuple(_purity(query, stage[known], label) for stage in stages),
    )


def agreement(first: Ids, second: Ids) -> float:
    """Mean share of ids that two lists per query have in common; needs no labels (e.g. top-k of each single view)."""
    shared = [len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(first, second, strict=True)]
    most = np.maximum((first >= 0).sum(1), (second >= 0).sum(1))
    return _ratio(float(np.sum(shared)), float(most.sum()))


def hubness(ids: Ids, n: int) -> float:
    """Skewness of how often each of n rows was mined (the k-occurrence): 0 is even, above 1 a few hubs serve everyone."""
    times = np.bincount(ids[ids >= 0], minlength=n).astype(np.float64)
    centred = times - times.mean()
    deviation = float(centred.std())
    return float((centred**3).mean()) / deviation**3 if deviation > 0 else 0.0


def random_positives(bank: EmbeddingBank, query: Ids, k: int, seed: int = 0) -> Ids:
    """int64 [Q, k] allowed slots drawn without replacement: the floor that every miner must beat."""
    return drawn_positives(np.flatnonzero(bank.version >= 0), bank.exclusions(query), k, seed)


def drawn_positives(filled: Ids, exclude: Exclusions, k: int, seed: int = 0) -> Ids:
    """int64 [Q, k] of the `filled` slots without those that each query may not mine, -1 padded.

    From a large bank each query draws out of a small draw of its own, which is as random and needs no copy of the bank.
    """
    rng = np.random.default_rng(seed)
    ids, most = np.full((exclude.rows, k), -1, np.int64), 4 * (k + exclude.widest)
    for row in range(exclude.rows):
        some = filled if len(filled) <= max(_SMALL, most) else filled[rng.integers(len(filled), size=most)]
        allowed = np.setdiff1d(some, exclude.row(row), assume_unique=False)
        drawn = rng.choice(allowed, min(k, len(allowed)), replace=False)
        ids[row, : len(drawn)] = drawn
    return ids


def best_positives(bank: EmbeddingBank, query: Ids, k: int, label: Ids, main: str) -> Ids:
    """int64 [Q, k] class mates of each query, the k nearest in the main view, -1 where there are fewer: needs labels."""
    known = np.where(bank.version >= 0, label, -1)
    return nearest_mates(bank.table(main), known, bank.group, query, label[query], k)


def nearest_mates(table: Table, label: Ids, group: Ids, query: Ids, of: Ids, k: int) -> Ids:
    """As `best_positives`, of rows [N, D] that may be mined where `label` is known; `of` are the queries' own labels."""
    ids, plan = np.full((len(query), k), -1, np.int64), CascadePlan(max(len(table), k), 1, k=k, strategy="oracle")
    for of_class in np.unique(of[of >= 0]):
        rows, mates = np.flatnonzero(of == of_class), np.flatnonzero(label == of_class)
        if not len(mates):
            continue
        own = [np.flatnonzero(group[mates] == group[one]) for one in query[rows]]
        found = mine([table[query[rows]]], [table[mates]], plan, exclude=own)
        ids[rows] = np.where(found.ids >= 0, mates[found.ids], -1)
    return ids


def rivals(
    bank: EmbeddingBank,
    plan: CascadePlan,
    label: Ids,
    *,
    main: str,
    aux: str,
    query: Ids | None = None,
    backend: Backend = "auto",
    seed: int = 0,
) -> Mapping[str, MiningQuality]:
    """The cascade beside what costs less, on one bank and in the space that it mines in, at equal k.

    Args:
        bank: A bank or snapshot.
        plan: The cascade.
        label: int64 [N].
        main: Name of the main view.
        aux: Name of the aux view.
        query: Slots that mine; None: all filled ones.
        backend: As in `mine`.
        seed: Of the random rival.

    Returns:
        "cascade", every rival of `vidssl.tables.strategies`, "aux" ("single" on the aux view), "random" (the floor)
        and "oracle" (the ceiling: its precision of a query is min(1, class mates / k)); each states its last pool.
    """
    slots = np.flatnonzero(bank.version >= 0) if query is None else query
    label = np.where(bank.version >= 0, label, -1)  # an empty slot can be nobody's positive
    table: dict[str, MiningQuality] = {}
    for name in ("cascade", *RIVALS):
        table[name] = _one(bank, replace(plan, strategy=name), label, slots, (main, aux), backend)
        if name == "single":
            table["aux"] = _one(bank, replace(plan, strategy=name), label, slots, (aux, main), backend)
    drawn = random_positives(bank, slots, plan.k, seed)
    table["random"] = measure(slots, drawn, label, bank.group, (), bank.filled)
    table["oracle"] = _ceiling(bank, slots, plan.k, label, main)
    return table


def _ceiling(bank: EmbeddingBank, slots: Ids, k: int, label: Ids, main: str) -> MiningQuality:
    """A miner that must hand out k has to take others where the class mates end, so it is measured by k."""
    ids = best_positives(bank, slots, k, label, main)
    known = label[slots] >= 0
    precision = _over_classes((ids[known] >= 0).sum(1) / k, label[slots[known]])
    return replace(measure(slots, ids, label, bank.group, (), bank.filled), precision=precision)


def _one(
    bank: EmbeddingBank, plan: CascadePlan, label: Ids, slots: Ids, views: tuple[str, str], backend: Backend
) -> MiningQuality:
    rows, valid = bank.mapped.tables(bank)
    tables = [engine_table(rows[view]) for view in views]
    ids, purity, weight = [], np.zeros(plan.depth), 0
    for part in np.array_split(slots, max(1, len(slots) // 512)):
        queries = [table[part] for table in tables]
        excluded = bank.exclusions(part)
        found = mine(queries, tables, plan, exclude=excluded, valid=valid, backend=backend, trace=True)
        ids.append(found.ids)
        purity += [len(part) * _purity(part, stage, label) for stage in found.stages]
        weight += len(part)
    pool = (bank.filled, *plan.sizes(bank.filled))[plan.depth - 1]
    quality = measure(slots, np.concatenate(ids), label, bank.group, (), pool)
    return replace(quality, purity=tuple((purity / max(weight, 1)).tolist()))


class MiningMonitor:
    """Precision of what a bank handed out lately; holds the labels so that the miner need not.

    Args:
        label: int64 [N], -1 unknown.
        batches: How many mined batches "lately" is.
    """

    def __init__(self, label: Ids, batches: int = 200) -> None:
        self._label = label
        self._lately: deque[tuple[int, int, int, int]] = deque(maxlen=batches)

    def note(self, query: Ids, ids: Ids) -> None:
        """Count one mined batch: int64 [B] queries and the [B, k] they got."""
        there = (ids >= 0) & (self._label[query] >= 0)[:, None]
        same = there & (self._label[ids] == self._label[query][:, None])
        counts = same.sum(), there.sum(), same.any(1).sum(), there.any(1).sum()
        self._lately.append((int(counts[0]), int(counts[1]), int(counts[2]), int(counts[3])))

    def read(self) -> dict[str, float]:
        """precision_at_k and hit_at_k; empty where nothing with a label was mined."""
        same, mined, hits, queries = np.array([(0, 0, 0, 0), *self._lately]).sum(0).tolist()
        return {"precision_at_k": same / mined, "hit_at_k": hits / queries} if mined else {}


def _recall_of_class(query: Ids, correct: Ids, label: Ids) -> dict[int, float]:
    """Of the classes that asked. The whole class is the denominator: a sample of queries gives a lower bound."""
    found = np.unique(correct)
    return {int(c): _ratio((label[found] == c).sum(), (label == c).sum()) for c in np.unique(label[query])}


def _over_classes(value: NDArray[np.float64], of: Ids) -> Spread:
    means = np.array([value[of == c].mean() for c in np.unique(of)])
    return _spread(means, float(value.mean()) if len(value) else 0.0)


def _spread(by_class: NDArray[np.float64], micro: float) -> Spread:
    if not len(by_class):
        return Spread(0.0, 0.0, 0.0, 0.0, micro)
    lower, median, upper = np.quantile(by_class, [0.25, 0.5, 0.75])
    return Spread(float(median), float(lower), float(upper), float(by_class.min()), micro)


def _purity(query: Ids, stage: Ids, label: Ids) -> float:
    there = (stage >= 0) & (label[query] >= 0)[:, None]
    return _ratio((there & (label[stage] == label[query][:, None])).sum(), there.sum())


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else 0.0
