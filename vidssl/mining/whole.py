"""The cascade on whole rows of scores: small banks, and whatever needs every score or every stage's survivors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vidssl.mining.scores import score, scratch
from vidssl.mining.select import select
from vidssl.mining.strategy import strategy_of
from vidssl.mining.task import Selection, Task

__all__ = ["in_threads", "join", "mine_whole", "parts"]

Result = TypeVar("Result")

CELLS = 1 << 20
"""Scores of one view that are selected at once: 4 MB, so that later stages find them in the cache."""


def mine_whole(task: Task) -> Selection:
    """As many queries at a time as the budget holds.

    Raises:
        BankError: a bank row is not finite.
    """
    fused = 40 if task.plan.traits.fuses else 0  # ranks are made of int64
    copied = 0 if task.valid is None else 2 * len(task.bank)
    return join([_block(part) for _, part in parts(task, task.n_slots * (4 * len(task.bank) + copied + 8 + fused))])


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


def in_threads(threads: int, work: Callable[[int], Result], numbers: range) -> list[Result]:
    """What `work` makes of each number, in their order; each thread computes its products alone.

    Libraries that split one product over threads make them wait for each other at its end, on a busy machine for longer
    than the product takes. torch keeps its number of threads for each thread, which is why products are torch's.
    """
    if len(numbers) == 1 < threads:
        return [work(number) for number in numbers]
    before = torch.get_num_threads()

    def alone(number: int) -> Result:
        torch.set_num_threads(1)
        return work(number)

    try:
        if threads == 1:
            return [alone(number) for number in numbers]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(alone, numbers))
    finally:
        torch.set_num_threads(before)


def _block(task: Task) -> Selection:
    scores = []
    for number, (query, view) in enumerate(zip(task.wide, task.bank, strict=True)):
        out = scratch(number, task.rows, task.n_slots)
        scores.append(score(query, view, task.exclude, task.valid, out))
    columns = _filled(task)
    if columns is not None:
        scores = [view.take(columns, axis=1) for view in scores]
    scores = strategy_of(task.plan.strategy).fuse(scores)
    height = max(1, CELLS // task.n_slots)

    def some(start: int) -> Selection:
        here = [view[start : start + height] for view in scores]
        return select(here, task.plan.views, task.sizes, task.trace)

    found = join(in_threads(task.threads, some, range(0, task.rows, height)))
    return found if columns is None else _slots_of(found, columns)


def _filled(task: Task) -> NDArray[np.int64] | None:
    """The filled slots of a bank that is half empty: where most scores are equal, a partition takes ten times as long."""
    if task.valid is None or not task.sizes[-1] <= task.filled <= task.n_slots // 2:
        return None
    return np.flatnonzero(task.valid)


def _slots_of(found: Selection, columns: NDArray[np.int64]) -> Selection:
    ids, scores, traced = found
    named = np.append(columns, -1)  # a place of -1 stays -1
    return named[ids], scores, [named[stage] for stage in traced]
