"""How good is what was mined? Labels are read here and nowhere else in mining.

precision@k is the share of mined videos with the query's class, hit@k whether there is one; coverage of a class is the
share of its videos that some query of the class mined. None of them is called the paper's: its definition of class
mining recall is not published in full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.cascade import Backend, mine
from vidssl.mining.plan import CascadePlan
from vidssl.tables.strategies import RIVALS

__all__ = [
    "MiningMonitor",
    "MiningQuality",
    "Spread",
    "agreement",
    "best_positives",
    "measure",
    "random_positives",
    "rivals",
]

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """One measure over classes: every class counts once, however many videos it has.

    Attributes:
        median: Median over classes (mean of the middle two for an even number).
        lower: First quartile.
        upper: Third quartile.
        least: The worst class.
        micro: Mean over queries (of coverage: over videos).
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
        coverage: Share of each class that was mined by its own.
        sibling_rate: Share of mined that are cut from the query's source (0 by construction).
        distinct: Different videos among the mined, relative to their number: low means a few hubs serve everyone.
        mined: Mean positives per query.
        last_pool: p of the plan, None where there is none.
        purity: Share of the query's class after each stage.
    """

    precision: Spread
    hit: Spread
    coverage: Spread
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
        label: int64 [N].
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
    siblings = 0.0 if group is None else _ratio((there & (group[ids] == group[query][:, None])).sum(), there.sum())
    return MiningQuality(
        precision=_over_classes(precision, label[query]),
        hit=_over_classes(same.any(1).astype(float), label[query]),
        coverage=_coverage(query, ids[same], label),
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


def random_positives(bank: EmbeddingBank, query: Ids, k: int, seed: int = 0) -> Ids:
    """int64 [Q, k] allowed slots drawn without replacement: the floor that every miner must beat."""
    rng, filled = np.random.default_rng(seed), np.flatnonzero(bank.version >= 0)
    exclude = bank.exclusions(query)
    ids = np.full((len(query), k), -1, np.int64)
    for row in range(len(query)):
        allowed = np.setdiff1d(filled, exclude.row(row), assume_unique=False)
        drawn = rng.choice(allowed, min(k, len(allowed)), replace=False)
        ids[row, : len(drawn)] = drawn
    return ids


def best_positives(bank: EmbeddingBank, query: Ids, k: int, label: Ids, main: str) -> Ids:
    """int64 [Q, k] class mates of each query, the k nearest in the main view, -1 where there are fewer: needs labels."""
    ids, plan = np.full((len(query), k), -1, np.int64), CascadePlan(max(bank.n_slots, k), 1, k=k, strategy="oracle")
    table, filled = bank.table(main), bank.version >= 0
    for of_class in np.unique(label[query][label[query] >= 0]):
        rows, mates = np.flatnonzero(label[query] == of_class), np.flatnonzero(filled & (label == of_class))
        if not len(mates):
            continue
        own = [np.flatnonzero(bank.group[mates] == bank.group[one]) for one in query[rows]]
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
    """The cascade beside what costs less, on one bank, at equal k.

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
    tables, valid = [bank.table(view) for view in views], bank.version >= 0
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


def _coverage(query: Ids, correct: Ids, label: Ids) -> Spread:
    """Denominator: all videos of the classes that queried, so a sample of queries is capped below one."""
    classes = np.unique(label[query])
    found = np.unique(correct)
    of_class = np.array([_ratio((label[found] == c).sum(), (label == c).sum()) for c in classes])
    micro = _ratio(len(found), np.isin(label, classes).sum())
    return _spread(of_class, micro)


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
