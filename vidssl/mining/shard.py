"""What does one shard of a bank do for a batch? It scores its own slots, and answers what all shards are asked.

It is asked twice at most in the common case: what lies in or above the brackets of all stages (see `scan`), or else stage
by stage how many candidates have which bits (see `histogram`), what to keep of them, and its best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.brackets import Brackets
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan
from vidssl.mining.rows import Table
from vidssl.mining.scores import gathered, score
from vidssl.mining.strategy import strategy_of
from vidssl.mining.stream import Piece, scan
from vidssl.mining.task import Task

__all__ = ["Ids", "Keys", "Part", "Scores", "Shard"]

Ids = NDArray[np.int64]
Keys = NDArray[np.uint32]
Scores = NDArray[np.float32]

_SIGN = np.uint32(0x80000000)
_LOW = np.int64(0xFFFFFFFF)


@dataclass(frozen=True)
class Part:
    """The rows of one shard as they are compared.

    Attributes:
        tables: [size, D] rows of each view that the plan reads.
        valid: bool [size], filled slots.
    """

    tables: Sequence[Table]
    valid: NDArray[np.bool_]


class Shard:
    """A contiguous range of slots, and the candidates of one batch among them.

    Args:
        first: Its first slot.
        size: How many slots it has.
    """

    def __init__(self, first: int, size: int) -> None:
        self.first, self.size = first, size
        self._scores: list[Scores] = []
        self._keys: list[Keys] = []
        self._alive: list[Ids] = []
        self._near: list[Keys] = []

    def scan(
        self,
        queries: Sequence[NDArray],
        part: Part,
        plan: CascadePlan,
        exclude: Exclusions,
        brackets: Brackets,
        threads: int = 1,
    ) -> list[Piece]:
        """What may matter of this shard's rows, with the scores of every view that the plan reads; slots of the bank.

        Args:
            queries: float32 [B, D] of each view.
            part: This shard's rows.
            plan: Of the whole bank.
            exclude: Slots of the whole bank.
            brackets: Of the whole bank.
            threads: Of the scan.
        """
        filled = int(np.count_nonzero(part.valid))
        valid = None if filled == self.size else part.valid
        sizes = plan.sizes(filled)  # not looked at: only the brackets are
        task = Task(queries, part.tables, plan, sizes, self._own(exclude), valid, filled, threads, 0)
        read = [0] if plan.traits.fuses else brackets.views(plan)
        other = [] if plan.traits.fuses else [view for view in range(len(queries)) if view not in read]
        return [self._whole(task, piece, other) for piece in scan(task, brackets)]

    def _whole(self, task: Task, piece: Piece, other: Sequence[int]) -> Piece:
        """With the scores of views that no stage of the brackets reads, and slots of the whole bank."""
        scores = list(piece.scores)
        for view in other:  # what is left is so little that gathering its rows beats a product with all
            slots = piece.slots.astype(np.int64)
            rows = [
                gathered(task.bank[view], slots[a:b]) @ query
                for a, b, query in zip(piece.bounds, piece.bounds[1:], task.wide[view], strict=False)
            ]
            scores.insert(view, np.concatenate(rows))
        return replace(piece, slots=piece.slots + np.int64(self.first), scores=scores)

    def begin(
        self,
        queries: Sequence[NDArray],
        part: Part,
        plan: CascadePlan,
        exclude: Exclusions,
    ) -> None:
        """Score queries against this shard's rows; see `Shards.begin`.

        Args:
            queries: float32 [B, D] of each view.
            part: This shard's rows.
            plan: Of the whole bank.
            exclude: Slots of the whole bank.
        """
        own = self._own(exclude)
        scores = [score(query, view, own, part.valid) for query, view in zip(queries, part.tables, strict=True)]
        self._scores = list(strategy_of(plan.strategy).fuse(scores))
        self._keys = [_keys(one) for one in self._scores]
        self._alive = [np.flatnonzero(row != -np.inf) for row in self._scores[0]]

    def histogram(self, view: int, digit: int, prefix_B: Keys) -> Ids:
        """See `Shards.histogram`. Returns int64 [B, 256]."""
        if digit == 0:
            self._near = [keys[columns] for keys, columns in zip(self._keys[view], self._alive, strict=True)]
        else:
            shift = np.uint32(32 - 8 * digit)
            self._near = [near[near >> shift == one] for near, one in zip(self._near, prefix_B, strict=True)]
        shift = np.uint32(24 - 8 * digit)
        counts = [np.bincount((near >> shift) & np.uint32(255), minlength=256) for near in self._near]
        return np.array(counts, np.int64).reshape(-1, 256)

    def keep(self, view: int, threshold_B: Keys, equals_B: Ids) -> None:
        """See `Shards.keep`."""
        for row, (threshold, equals) in enumerate(zip(threshold_B, equals_B, strict=True)):
            columns = self._alive[row]
            keys = self._keys[view][row, columns]
            kept = keys > threshold
            kept[np.flatnonzero(keys == threshold)[:equals]] = True
            self._alive[row] = columns[kept]

    def best(self, view: int, k: int) -> tuple[Ids, Scores]:
        """See `Shards.best`. Returns [B, k] each."""
        ids, scores = np.full((len(self._alive), k), -1, np.int64), np.full((len(self._alive), k), -np.inf, np.float32)
        for row, columns in enumerate(self._alive):
            keys = (self._keys[view][row, columns].astype(np.int64) << 31) | (_LOW >> 1) - columns
            if len(keys) > k:
                keys = np.partition(keys, len(keys) - k)[len(keys) - k :]
            chosen = (_LOW >> 1) - (np.sort(keys)[::-1] & (_LOW >> 1))
            ids[row, : len(chosen)] = chosen + self.first
            scores[row, : len(chosen)] = self._scores[view][row, chosen]
        return ids, scores

    def _own(self, exclude: Exclusions) -> Exclusions:
        here = (exclude.slots >= self.first) & (exclude.slots < self.first + self.size)
        return exclude.kept(here, self.first)


def _keys(score_BN: Scores) -> Keys:
    bits = (score_BN + np.float32(0)).view(np.uint32)  # -0.0 and 0.0 are one score
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)
