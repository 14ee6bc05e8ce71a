"""Whose positives show the query's class? Every strategy in every space, on one bank of two views; labels only count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.cascade import mine
from vidssl.mining.exclusions import GroupIndex
from vidssl.mining.plan import CascadePlan
from vidssl.mining.space import SpaceKind, fit_space

__all__ = ["SPACES", "STAGES", "STRATEGIES", "bank_precision", "published_pool"]

STAGES = 7
RATIO = 0.5
SPACES: tuple[SpaceKind, ...] = ("raw", "white", "canonical")
STRATEGIES = ("single", "other", "sum", "cascade", "cascade to other")
"""The first view alone, the second alone, their sum, the published cascade that ends on the first, and on the second."""

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


def published_pool(slots: int, k: int) -> int:
    """Last pool of the published cascade (S=7, r=.5); k where it would hold fewer."""
    return max(int(slots * RATIO ** (STAGES - 1)), k)


def bank_precision(
    views: Sequence[Floats],
    label: Ids,
    group: Ids,
    ks: Sequence[int],
    queries: int,
    seed: int,
    strategies: Sequence[str] = STRATEGIES,
) -> dict[str, float]:
    """precision@k (micro, own source excluded) of every strategy and space: `k=5 | sum, white`.

    Also `bank | directions`, how many canonical ones were above chance (0: too few, and the rows are raw), and
    `k=5 | random`.

    Args:
        views: [N, D] unit rows of both views, in one order.
        label: int64 [N].
        group: int64 [N], the source.
        ks: Positives of a query.
        queries: At most so many rows mine, drawn evenly; all of them are in the bank.
        seed: Of the draw and of the maps.
        strategies: Some of `STRATEGIES`.
    """
    asked = np.sort(np.random.default_rng((seed, 31)).permutation(len(label))[:queries])
    exclude = GroupIndex(group).exclusions(group[asked])
    found: dict[str, float] = {}
    for space in SPACES:
        fitted = fit_space(space, {"first": views[0], "second": views[1]}, seed=seed)
        rows = [fitted.apply(view, one) for view, one in enumerate(views)]
        if space == "canonical":
            found["bank | directions"] = float(len(fitted.weights))
        for strategy in strategies:
            bank = rows[::-1] if "other" in strategy else rows
            for k in ks:
                plan = _plan(strategy, len(label), k)
                ids = mine([one[asked] for one in bank], bank, plan, exclude=exclude).ids
                found[f"k={k} | {strategy}, {space}"] = round(_precision(ids, label[asked], label), 4)
    mates = (label[asked, None] == label) & (group[asked, None] != group)
    others = group[asked, None] != group
    return found | {f"k={k} | random": round(float((mates.sum(1) / others.sum(1)).mean()), 4) for k in ks}


def _plan(strategy: str, slots: int, k: int) -> CascadePlan:
    if "cascade" not in strategy:
        return CascadePlan(slots, 1, k=k, strategy="sum" if strategy == "sum" else "single")
    pool = published_pool(slots, k)
    ratio = (pool / slots) ** (1 / (STAGES - 1))
    while int(slots * ratio ** (STAGES - 1)) < pool:
        ratio = float(np.nextafter(ratio, 2.0))
    return CascadePlan(slots, STAGES, ratio, k)


def _precision(ids: Ids, asked: Ids, label: Ids) -> float:
    there = ids >= 0
    return float(((label[ids] == asked[:, None]) & there).sum() / there.sum())
