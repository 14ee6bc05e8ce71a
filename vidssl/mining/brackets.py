"""Between which two scores does each stage cut? Guessed from a sample of the bank, before the bank is read.

A cascade on a random sample of the slots cuts at nearly the same scores as on all of them: the rank of a cut in a sample
of M slots is off by about sqrt(M·r·(1−r)). What lies above the upper score surely survives a stage, what lies below the
lower one surely does not, and only the little in between has to be looked at. The guess is verified for every query by
exact counts (`vidssl.mining.stream`), so a wrong one costs time and never a result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.plan import CascadePlan
from vidssl.mining.scores import check_finite, forbid, gathered, product
from vidssl.mining.select import best_of
from vidssl.mining.strategy import strategy_of
from vidssl.mining.task import Ids, Scores, Task
from vidssl.mining.whole import in_threads

__all__ = ["Brackets", "Sample", "guess", "sampled_slots"]

SAMPLE = (4096, 16_384)
"""Fewest and most slots of a sample; between them one slot in 16."""
SURE = 4.0
"""Standard deviations of a sampled rank on either side."""
SMALL = 1 / 16
"""Share of the bank from which on survivors are handled one query at a time."""
GATHERED = 1 / 64
"""Share of the bank from which on rows of a view are gathered: a gathered row costs as much as 50 of a matrix product."""
LOWEST = np.finfo(np.float32).min
"""Below every allowed score and above -inf."""


@dataclass(frozen=True)
class Brackets:
    """Where the first C stages cut.

    Attributes:
        low: float32 [C, B]; below it nothing survives the stage.
        high: float32 [C, B]; what is above it survives the stage.
        share: About how much of the bank lies in a bracket or survives all C stages.
    """

    low: Scores
    high: Scores
    share: float

    @property
    def depth(self) -> int:
        """C."""
        return len(self.low)

    def views(self, plan: CascadePlan) -> list[int]:
        """Views that these stages read; the first one where there is no stage."""
        return sorted(set(plan.views[: max(self.depth, 1)]))

    def part(self, start: int, stop: int) -> Brackets:
        """Of queries start..stop-1."""
        return Brackets(self.low[:, start:stop], self.high[:, start:stop], self.share)


@dataclass(frozen=True)
class Sample:
    """Filled slots of a bank, some perhaps twice, and their rows.

    Attributes:
        slots: int64 [M], rising.
        rows: View → float32 [M, D].
    """

    slots: Ids
    rows: Callable[[int], Scores]


def guess(task: Task, sample: Sample | None = None) -> Brackets:
    """Brackets of the stages that are better done while the bank is read, the last one perhaps among them.

    Args:
        task: Queries, plan and sizes; its bank is looked at only where no sample is given.
        sample: Of the bank, where it was drawn before.

    Raises:
        BankError: a sampled row of the bank is not finite.
    """
    sample = _sample(task) if sample is None else sample
    cuts = np.linspace(0, task.rows, min(task.threads, task.rows) + 1).astype(int).tolist()
    tasks = [task.part(start, stop) for start, stop in itertools.pairwise(cuts)]
    found = in_threads(task.threads, lambda number: _guess(tasks[number], sample), range(len(tasks)))
    low, high = (np.concatenate([getattr(one, name) for one in found], axis=1) for name in ("low", "high"))
    return Brackets(low, high, found[0].share)  # depth and share follow from the sizes alone


def _guess(task: Task, sample: Sample) -> Brackets:
    slots = sample.slots
    views, fuses = task.plan.views, task.plan.traits.fuses
    scores: list[Scores | None] = _fused(task, sample) if fuses else [None, None]
    low, high, share = [], [], 0.0
    rank, variance, alive = float(len(slots)), 0.0, None
    for stage, (view, size) in enumerate(zip(views, task.sizes, strict=True)):
        here = scores[view]
        if here is None:
            here = scores[view] = _scores(task, sample, view)
        here = here if alive is None else here.reshape(-1).take(alive)
        kept = size * len(slots) / task.filled
        variance = kept * max(1 - kept / rank, 0) + (kept / rank) ** 2 * variance
        margin, rank = SURE * math.sqrt(variance) + 2, kept
        over, under = _cuts(here, kept, margin)
        low.append(under)
        high.append(over)
        share += 2 * margin / len(slots)
        unread = view == 0 and not fuses and 1 in views[stage:] and len(low) == 1
        enough = size <= (GATHERED if unread else SMALL) * task.filled
        if enough or np.isposinf(over).all():
            share += size / task.filled
            break
        best = best_of(here, min(max(1, round(kept)), here.shape[1]))
        alive = best if alive is None else alive.reshape(-1).take(best)
    return Brackets(np.stack(low), np.stack(high), min(share, 1.0))


def sampled_slots(filled: int, valid: NDArray[np.bool_] | None) -> Ids:
    """Slots of a sample, rising; the same for the same bank."""
    size = min(max(filled // 16, SAMPLE[0]), SAMPLE[1])
    drawn = np.sort(np.random.default_rng(0).integers(0, filled, size))  # some twice: as good as any
    return drawn if valid is None else np.flatnonzero(valid)[drawn]


def _sample(task: Task) -> Sample:
    slots = sampled_slots(task.filled, task.valid)
    return Sample(slots, lambda view: gathered(task.bank[view], slots))


def _scores(task: Task, sample: Sample, view: int) -> Scores:
    out = np.empty((task.rows, len(sample.slots)), np.float32)
    product(task.wide[view], sample.rows(view), out)
    check_finite(out[:1], None)
    rows, columns = _excluded(task, sample.slots)
    forbid(out, None, rows, columns)
    return out


def _fused(task: Task, sample: Sample) -> list[Scores | None]:
    scores = [_scores(task, sample, view) for view in range(len(task.queries))]
    return list(strategy_of(task.plan.strategy).fuse(scores))


def _excluded(task: Task, slots: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, column) of each excluded slot in the sample, wherever it occurs."""
    first = np.searchsorted(slots, task.exclude.slots, side="left")
    count = np.searchsorted(slots, task.exclude.slots, side="right") - first
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(task.exclude.row_of_slot(), count), np.repeat(first, count) + within


def _cuts(score_BM: Scores, rank: float, margin: float) -> tuple[Scores, Scores]:
    """float32 [B] each: the score that surely fewer reach, and the score that surely more reach."""
    rows, width = score_BM.shape
    over, under = math.floor(rank - margin), math.ceil(rank + margin)
    places = [width - place for place in (over, under) if 1 <= place <= width]
    found = np.partition(score_BM, places, axis=1) if places else score_BM
    return (
        found[:, -over] if over >= 1 else np.full(rows, np.inf, np.float32),
        np.maximum(found[:, -under], LOWEST) if under <= width else np.full(rows, LOWEST, np.float32),
    )
