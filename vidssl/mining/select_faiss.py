"""The first stage by FAISS where it keeps little of a large bank; later stages score what is left, row by row.

FAISS settles ties in an order of its own, so one candidate more than needed is fetched: where the scores on both sides
of the cut are equal, that query is selected again from its whole row of scores. Excluded slots are over-fetched and
dropped: FAISS's filters hold one set per call, and its classic GPU index ignores them.
"""

from __future__ import annotations

import numpy as np

from vidssl.errors import BankError
from vidssl.mining.scores import CHUNK, check_finite, gathered, raised, score
from vidssl.mining.select import select
from vidssl.mining.task import Ids, Scores, Selection, Task

__all__ = ["mine_by_faiss"]


def mine_by_faiss(task: Task) -> Selection:
    """No score matrix is made: after the first stage rows are gathered.

    Raises:
        BankError: FAISS is not installed, or a bank row is not finite.
    """
    first, first_score = _search(task, task.wide[0], raised(task.bank[0], 0, task.n_slots))
    if task.plan.depth == 1:
        return first, first_score, [first] if task.trace else []
    there = np.where(first < 0, task.n_slots, first)
    order = np.argsort(there, axis=1)  # by slot, so ties stay ties; padding last
    pool = np.take_along_axis(there, order, axis=1)
    scores = [np.take_along_axis(first_score, order, axis=1)]
    for query, view in zip(task.wide[1:], task.bank[1:], strict=True):
        here = np.full(pool.shape, -np.inf, np.float32)
        with np.errstate(invalid="ignore"):  # narrow products may raise the flag for numbers that nobody asked for
            for row, slots in enumerate(pool):
                known = slots[slots < task.n_slots]
                here[row, : len(known)] = gathered(view, known) @ query[row]
        check_finite(here[pool < task.n_slots], None)
        scores.append(here)
    ids, last_score, stages = select(scores, task.plan.views[1:], task.sizes[1:], task.trace)
    slots = [_slots(pool, columns) for columns in (ids, *stages)]
    return slots[0], last_score, [first, *slots[1:]] if task.trace else []


def _search(task: Task, query: Scores, view: Scores) -> tuple[Ids, Scores]:
    size, valid = task.sizes[0], task.valid
    rows = None if valid is None or valid.all() else np.flatnonzero(valid)
    table = np.ascontiguousarray(view if rows is None else view[rows], np.float32)
    for start in range(0, len(table), CHUNK):
        check_finite(query[:1] @ table[start : start + CHUNK].T, None)
    fetch = min(len(table), size + task.exclude.widest + 1)
    near, found = _knn(query, table, fetch, task.threads) if fetch else (np.zeros((len(query), 0), np.float32), None)
    slots = np.zeros((len(query), 0), np.int64) if found is None else found if rows is None else rows[found]
    ids, scores = np.full((len(query), size), -1, np.int64), np.full((len(query), size), -np.inf, np.float32)
    for row in range(len(query)):
        kept = ~np.isin(slots[row], task.exclude.row(row))
        order = np.lexsort((slots[row][kept], -near[row][kept]))[:size]
        best, best_score = slots[row][kept][order], near[row][kept][order]
        cut_in_a_tie = len(best) == size and fetch < len(table) and best_score[-1] == near[row].min()
        if cut_in_a_tie:
            every = score(query[row : row + 1], view, task.exclude.part(row, row + 1), valid)
            best, best_score = (part[0] for part in select([every], (0,), (size,), False)[:2])
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
