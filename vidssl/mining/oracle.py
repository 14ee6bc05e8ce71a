"""The cascade as one would explain it: a sorted list per stage. Slow, and what every fast path must equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan
from vidssl.mining.strategy import Score, strategy_of

__all__ = ["mine_slowly"]

Stages = list[list[int]]


def mine_slowly(
    queries: Sequence[NDArray],
    bank: Sequence[NDArray],
    plan: CascadePlan,
    exclude: Exclusions,
    valid: NDArray[np.bool_],
) -> tuple[list[Stages], list[Score]]:
    """Columns after each stage (best first) and the last score of every candidate, for each query in turn."""
    n_filled = int(valid.sum())
    stages_B, scores_B = [], []
    for row in range(len(queries[0])):
        forbidden = set(exclude.row(row).tolist())
        allowed = [slot for slot in range(len(valid)) if valid[slot] and slot not in forbidden]
        scores = [_scores(query[row], view, allowed) for query, view in zip(queries, bank, strict=True)]
        scores = strategy_of(plan.strategy).slowly(scores)
        stages: Stages = []
        for view, size in zip(plan.views, plan.sizes(n_filled), strict=True):
            score = scores[view]
            allowed = sorted(allowed, key=lambda slot: (-score[slot], slot))[:size]
            stages.append(allowed)
            allowed = sorted(allowed)
        stages_B.append(stages)
        scores_B.append(scores[plan.views[-1]])
    return stages_B, scores_B


def _scores(query: NDArray, view_ND: NDArray, slots: Sequence[int]) -> Score:
    wide = query.astype(np.float64)
    return {slot: float(np.float32(wide @ view_ND[slot].astype(np.float64))) for slot in slots}
