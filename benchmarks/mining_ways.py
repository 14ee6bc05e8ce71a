"""Ways to mine that ours is measured beside, written from the definition of the cascade.

They know one thing less than ours: the query's own slot is masked in the first stage only, ties fall as the library lets
them, no slot is unfilled. `GATHERING` are implementations that, like the published one, gather the features of the
survivors at every stage; the fastest of them is the bar.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidssl.mining.plan import CascadePlan

__all__ = ["GATHERING", "Way", "bare_faiss", "gemm_alone", "published", "torch_topk"]

Views = Sequence[NDArray[np.float32]]
Way = Callable[[Views, Views, CascadePlan], object]


def published(queries: Views, bank: Views, plan: CascadePlan) -> torch.Tensor:
    """As released: one query at a time, the survivors of both views copied at every stage, sorted `topk`."""
    sizes, bank_t = plan.sizes(len(bank[0])), [torch.from_numpy(view) for view in bank]
    found = []
    for row in range(len(queries[0])):
        query = [torch.from_numpy(view[row : row + 1]) for view in queries]
        here, kept = list(bank_t), torch.arange(len(bank_t[0]))
        for stage, (view, size) in enumerate(zip(plan.views, sizes, strict=True)):
            score = query[view] @ here[view].T
            if stage == 0:
                score[0, row] = -torch.inf
            best = score.topk(size, dim=1).indices[0]
            here, kept = [one[best] for one in here], kept[best]
        found.append(kept)
    return torch.stack(found)


def gather_torch(queries: Views, bank: Views, plan: CascadePlan) -> torch.Tensor:
    """The first stage at once, then a matrix-vector product per query with gathered rows, unsorted `topk`."""
    query_t, bank_t = ([torch.from_numpy(view) for view in views] for views in (queries, bank))
    kept = None
    for view, size in zip(plan.views, plan.sizes(len(bank[0])), strict=True):
        if kept is None:
            score = query_t[view] @ bank_t[view].T
            score.fill_diagonal_(-torch.inf)
            kept = score.topk(size, dim=1, sorted=False).indices
            continue
        rows = [bank_t[view].index_select(0, slots) @ one for one, slots in zip(query_t[view], kept, strict=True)]
        kept = kept.gather(1, torch.stack(rows).topk(size, dim=1, sorted=False).indices)
    assert kept is not None
    return kept


def gather_numpy(queries: Views, bank: Views, plan: CascadePlan) -> NDArray[np.int64]:
    """The same in numpy, with the fastest selection that it has (`argpartition`)."""
    sizes = plan.sizes(len(bank[0]))
    score = queries[0] @ bank[0].T
    np.fill_diagonal(score, -np.inf)
    kept = _best(score, sizes[0])
    for view, size in zip(plan.views[1:], sizes[1:], strict=True):
        rows = [bank[view].take(slots, axis=0) @ one for one, slots in zip(queries[view], kept, strict=True)]
        kept = np.take_along_axis(kept, _best(np.stack(rows), size), axis=1)
    return kept


def gather_once(queries: Views, bank: Views, plan: CascadePlan) -> NDArray[np.int64]:
    """Features gathered once, after the first stage; both views are scored on them and later stages gather scores."""
    sizes = plan.sizes(len(bank[0]))
    score = queries[0] @ bank[0].T
    np.fill_diagonal(score, -np.inf)
    kept = _best(score, sizes[0])
    found = []
    for row, slots in enumerate(kept):
        scores = [view.take(slots, axis=0) @ query[row] for query, view in zip(queries, bank, strict=True)]
        alive = np.arange(len(slots))
        for view, size in zip(plan.views[1:], sizes[1:], strict=True):
            alive = alive[_best(scores[view][alive], size)]
        found.append(slots[alive])
    return np.stack(found)


def gather_at_once(queries: Views, bank: Views, plan: CascadePlan) -> torch.Tensor:
    """All queries at once: one gathered block [B, n, D] and one batched product per stage."""
    query_t, bank_t = ([torch.from_numpy(view) for view in views] for views in (queries, bank))
    kept = None
    for view, size in zip(plan.views, plan.sizes(len(bank[0])), strict=True):
        if kept is None:
            score = query_t[view] @ bank_t[view].T
            score.fill_diagonal_(-torch.inf)
            kept = score.topk(size, dim=1, sorted=False).indices
            continue
        score = torch.bmm(bank_t[view][kept], query_t[view][:, :, None])[:, :, 0]
        kept = kept.gather(1, score.topk(size, dim=1, sorted=False).indices)
    assert kept is not None
    return kept


def torch_topk(queries: Views, bank: Views, plan: CascadePlan) -> torch.Tensor:
    """No features gathered: two products, then `topk` of gathered scores."""
    query_t, bank_t = ([torch.from_numpy(view) for view in views] for views in (queries, bank))
    scores = [query @ view.T for query, view in zip(query_t, bank_t, strict=True)]
    scores[0].fill_diagonal_(-torch.inf)
    kept = None
    for view, size in zip(plan.views, plan.sizes(len(bank[0])), strict=True):
        here = scores[view] if kept is None else scores[view].gather(1, kept)
        best = here.topk(size, dim=1, sorted=False).indices
        kept = best if kept is None else kept.gather(1, best)
    assert kept is not None
    return kept


def bare_faiss(queries: Views, bank: Views, plan: CascadePlan) -> NDArray[np.int64]:
    """`faiss.knn` for the first stage and a re-rank of gathered rows: no exclusions, no ties, nothing checked."""
    faiss: Any = importlib.import_module("faiss")
    faiss.cvar.distance_compute_blas_threshold = 1
    sizes = plan.sizes(len(bank[0]))
    _, kept = faiss.knn(queries[0], bank[0], sizes[0] + 1, metric=faiss.METRIC_INNER_PRODUCT)
    for view, size in zip(plan.views[1:], sizes[1:], strict=True):
        rows = [bank[view].take(slots, axis=0) @ one for one, slots in zip(queries[view], kept, strict=True)]
        kept = np.take_along_axis(kept, _best(np.stack(rows), size), axis=1)
    return kept


def gemm_alone(queries: Views, bank: Views, plan: CascadePlan, out: Views) -> None:
    """The products that the plan's views need, whole, into memory that is there: nobody can be faster than this."""
    for view in sorted(set(plan.views)):
        np.matmul(queries[view], bank[view].T, out=out[view])


def _best(score: NDArray[np.float32], size: int) -> NDArray[np.int64]:
    if size >= score.shape[-1]:
        return np.broadcast_to(np.arange(score.shape[-1]), score.shape)
    return np.argpartition(score, -size, axis=-1)[..., -size:]


GATHERING: dict[str, Way] = {
    "gather_torch": gather_torch,
    "gather_numpy": gather_numpy,
    "gather_once": gather_once,
    "gather_at_once": gather_at_once,
}
"""By name; `gather_at_once` takes N·r·D·4·B bytes (537 MB at N=16,384, r=.5, B=64)."""
