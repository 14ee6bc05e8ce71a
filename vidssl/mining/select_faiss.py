"""The first stage by FAISS where it keeps little of a large bank; later stages select on scores as everywhere.

FAISS settles ties in an order of its own, so one candidate more than needed is fetched: where the scores on both sides
of the cut are equal, that query is selected again from its whole row of scores. Excluded slots are over-fetched and
dropped: FAISS's filters hold one set per call, and its classic GPU index ignores them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import BankError
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.scores import check_finite, score
from vidssl.mining.select import Ids, Scores, Selection, select_keys, select_rows

__all__ = ["select_faiss"]


def select_faiss(
    queries: Sequence[NDArray[np.float32]],
    bank: Sequence[NDArray],
    views: tuple[int, ...],
    sizes: tuple[int, ...],
    exclude: Exclusions,
    valid: NDArray[np.bool_] | None,
    threads: int,
    trace: bool,
) -> Selection:
    """As `select.select_rows`, from queries and bank instead of scores; the main view's score matrix is never made.

    Raises:
        BankError: FAISS is not installed, or a bank row is not finite.
    """
    first, first_score = _search(queries[0], bank[0], sizes[0], exclude, valid, threads)
    if len(views) == 1:
        return first, first_score, [first] if trace else []
    pool = np.sort(np.where(first < 0, len(bank[0]), first), axis=1)  # by slot, so ties stay ties; padding last
    order = np.argsort(np.where(first < 0, len(bank[0]), first), axis=1)
    scores = [np.take_along_axis(first_score, order, axis=1)]
    for query, view in zip(queries[1:], bank[1:], strict=True):
        every = score(query, view, exclude, valid)
        there = np.take_along_axis(every, np.minimum(pool, len(view) - 1), axis=1)
        scores.append(np.where(pool < len(view), there, np.float32(-np.inf)))
    ids, last_score, stages = select_keys(scores, views[1:], sizes[1:], trace)
    slots = [_slots(pool, columns) for columns in (ids, *stages)]
    return slots[0], last_score, [first, *slots[1:]] if trace else []


def _search(
    query: Scores, view: NDArray, size: int, exclude: Exclusions, valid: NDArray[np.bool_] | None, threads: int
) -> tuple[Ids, Scores]:
    rows = None if valid is None or valid.all() else np.flatnonzero(valid)
    table = np.ascontiguousarray(view if rows is None else view[rows], np.float32)
    fetch = min(len(table), size + exclude.widest + 1)
    check_finite(float(np.abs(table @ np.ones(table.shape[1], np.float32)).max(initial=0)))
    near, found = _knn(query, table, fetch, threads) if fetch else (np.zeros((len(query), 0), np.float32), None)
    slots = np.zeros((len(query), 0), np.int64) if found is None else found if rows is None else rows[found]
    ids, scores = np.full((len(query), size), -1, np.int64), np.full((len(query), size), -np.inf, np.float32)
    for row in range(len(query)):
        kept = ~np.isin(slots[row], exclude.row(row))
        order = np.lexsort((slots[row][kept], -near[row][kept]))[:size]
        best, best_score = slots[row][kept][order], near[row][kept][order]
        cut_in_a_tie = len(best) == size and fetch < len(table) and best_score[-1] == near[row].min()
        if cut_in_a_tie:
            every = score(query[row : row + 1], view, exclude.part(row, row + 1), valid)
            best, best_score = (part[0] for part in select_rows([every], (0,), (size,), False)[:2])
        ids[row, : len(best)], scores[row, : len(best)] = best, best_score
    return ids, scores


def _knn(query: Scores, table: Scores, fetch: int, threads: int) -> tuple[Scores, Ids]:
    try:
        import faiss
    except ImportError as error:
        raise BankError(
            "mining.backend=faiss needs faiss-gpu or faiss-cpu; install it or type mining.backend=auto"
        ) from error
    faiss.omp_set_num_threads(threads)
    # By default small batches go without BLAS, which is up to six times slower; one function, so the numbers stay.
    faiss.cvar.distance_compute_blas_threshold = 1
    return faiss.knn(np.ascontiguousarray(query), table, fetch, metric=faiss.METRIC_INNER_PRODUCT)


def _slots(pool: Ids, columns: Ids) -> Ids:
    return np.where(columns >= 0, np.take_along_axis(pool, np.maximum(columns, 0), axis=1), -1)
