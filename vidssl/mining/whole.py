"""The cascade on whole rows of scores: small banks, and whatever needs every score or every stage's survivors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vidssl.mining.scores import score
from vidssl.mining.select import select
from vidssl.mining.strategy import strategy_of
from vidssl.mining.task import Selection, Task

__all__ = ["join", "mine_whole", "parts"]

CELLS = 1 << 20
"""Scores of one view that are selected at once: 4 MB, so that later stages find them in the cache."""


def mine_whole(task: Task) -> Selection:
    """As many queries at a time as the budget holds.

    Raises:
        BankError: a bank row is not finite.
    """
    fused = 40 if task.plan.traits.fuses else 0  # ranks are made of int64
    return join([_block(part) for _, part in parts(task, task.n_slots * (4 * len(task.bank) + 8 + fused))])


def parts(task: Task, bytes_per_query: float) -> Iterator[tuple[int, Task]]:
    """The task cut into equal parts that fit its budget, with the first query of each."""
    most = max(1, int(task.budget // max(bytes_per_query, 1)))
    cuts = np.linspace(0, task.rows, -(-task.rows // most) + 1).astype(int).tolist()
    for start, stop in itertools.pairwise(cuts):
        yield start, task.part(start, stop)


def join(found: list[Selection]) -> Selection:
    """The parts' results, one below the other."""
    if len(found) == 1:
        return found[0]
    ids, scores, traced = zip(*found, strict=True)
    return np.concatenate(ids), np.concatenate(scores), [np.concatenate(stage) for stage in zip(*traced, strict=True)]


def _block(task: Task) -> Selection:
    scores = [score(query, view, task.exclude, task.valid) for query, view in zip(task.wide, task.bank, strict=True)]
    scores = strategy_of(task.plan.strategy).fuse(scores)
    height = max(1, CELLS // task.n_slots)

    def some(start: int) -> Selection:
        here = [view[start : start + height] for view in scores]
        return select(here, task.plan.views, task.sizes, task.trace)

    starts = range(0, task.rows, height)
    if task.threads == 1 or len(starts) == 1:
        return join([some(start) for start in starts])
    with ThreadPoolExecutor(task.threads) as pool:
        return join(list(pool.map(some, starts)))
