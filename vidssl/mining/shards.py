"""How is a bank mined that no machine can hold? Every shard scores its own slots, and the cut of a stage is agreed upon.

Only order statistics matter to a cascade: what a stage keeps is what lies above a threshold. So the shards count. Scores
are read as 32-bit numbers of the same order; four times each shard says how many candidates have which next 8 bits under
the prefix that was found so far, and the sums fix 8 bits of the threshold. Equals at the threshold are settled by slot,
which is the order of the shards, because each holds a contiguous range. The last stage merges the shards' best k. A stage
costs four rounds and 1 KB per query and round from each shard, whatever the size of the bank; ids come back as one
machine would give them, in the same order, wherever the scores themselves are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import BankError
from vidssl.mining.cascade import MineResult
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan
from vidssl.mining.rows import Table
from vidssl.mining.scores import score
from vidssl.mining.strategy import strategy_of

__all__ = ["LocalShards", "Shard", "Shards", "cut_points", "mine_sharded"]

Ids = NDArray[np.int64]
Keys = NDArray[np.uint32]
Scores = NDArray[np.float32]

DIGITS = 4
"""Rounds of 8 bits that make a threshold."""
BUDGET = 256 << 20
"""Bytes of scores that a shard may hold at once; larger batches are cut."""
_SIGN = np.uint32(0x80000000)
_LOW = np.int64(0xFFFFFFFF)


class Shards(Protocol):
    """The questions that go to all shards at once; answers are stacked in the order of their slots. P shards."""

    def filled(self) -> Ids:
        """int64 [P], filled slots."""
        ...

    def widest(self) -> int:
        """Slots of the largest shard."""
        ...

    def begin(self, queries: Sequence[NDArray], plan: CascadePlan, exclude: Exclusions) -> Ids:
        """Score these queries; every allowed slot is a candidate. Returns int64 [P, B], how many there are."""
        ...

    def histogram(self, view: int, digit: int, prefix_B: Keys) -> Ids:
        """int64 [P, B, 256]: of the candidates whose key begins with `prefix`, how many have which next 8 bits.

        Args:
            view: By whose scores.
            digit: How many groups of 8 bits the prefix has, from 0, one more at every question of a stage.
            prefix_B: uint32 [B].
        """
        ...

    def keep(self, view: int, threshold_B: Keys, equals_PB: Ids) -> None:
        """Keep candidates above the threshold, and of its equals each shard its own number, lower slots first."""
        ...

    def best(self, view: int, k: int) -> tuple[Ids, Scores]:
        """Slots [P, B, k] and scores of each shard's k best candidates, best first; -1 and -inf where there are fewer."""
        ...


def mine_sharded(
    shards: Shards,
    queries: Sequence[NDArray],
    plan: CascadePlan,
    exclude: Exclusions,
    budget_bytes: int = BUDGET,
) -> MineResult:
    """As `vidssl.mining.cascade.mine`, of a bank in shards.

    Args:
        shards: Who holds the slots.
        queries: float32 [B, D] rows of the main view, then of the aux one.
        plan: Of the whole bank.
        exclude: Slots of the whole bank that each query may not mine.
        budget_bytes: Memory of the scores of one shard.

    Raises:
        BankError: a strategy that cannot be told from a part of the bank, or rows that are not finite.
    """
    if not strategy_of(plan.strategy).by_slot:
        raise BankError(
            f"mining.strategy={plan.strategy} ranks the whole bank, which no shard holds; type mining.strategy=cascade or sum"
        )
    rows = len(queries[0])
    sizes = plan.sizes(int(shards.filled().sum()))
    block = max(1, budget_bytes // max(1, 8 * len(queries) * shards.widest()))
    parts = [
        _mine_block(
            shards, [query[a : a + block] for query in queries], plan, sizes, exclude.part(a, min(a + block, rows))
        )
        for a in range(0, rows, block)
    ]
    ids = np.concatenate([part[0] for part in parts])
    scores = np.concatenate([part[1] for part in parts])
    survivors = np.concatenate([part[2] for part in parts])
    return MineResult(ids, scores, (ids >= 0).sum(1).astype(np.int64), survivors)


def cut_points(n_slots: int, shards: int) -> list[int]:
    """First slots of contiguous shards of nearly equal size, and N.

    Raises:
        BankError: more shards than slots, or none.
    """
    if not 1 <= shards <= n_slots:
        raise BankError(f"mining.shards={shards} of {n_slots} slots: between 1 and {n_slots} are allowed")
    return [n_slots * shard // shards for shard in range(shards + 1)]


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

    def begin(
        self,
        queries: Sequence[NDArray],
        tables: Sequence[Table],
        valid: NDArray[np.bool_],
        plan: CascadePlan,
        exclude: Exclusions,
    ) -> Ids:
        """Score queries against this shard's rows; see `Shards.begin`. Returns int64 [B].

        Args:
            queries: float32 [B, D] of each view.
            tables: [size, D] rows of each view.
            valid: bool [size], filled slots.
            plan: Of the whole bank.
            exclude: Slots of the whole bank.
        """
        own, used = self._own(exclude), 2 if plan.needs_aux else 1
        scores = [score(query, view, own, valid) for query, view in zip(queries[:used], tables[:used], strict=True)]
        self._scores = list(strategy_of(plan.strategy).fuse(scores))
        self._keys = [_keys(one) for one in self._scores]
        self._alive = [np.flatnonzero(row != -np.inf) for row in self._scores[0]]
        return np.array([len(columns) for columns in self._alive], np.int64)

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
        count = np.bincount(exclude.row_of_slot()[here], minlength=exclude.rows)
        return Exclusions(np.concatenate([[0], np.cumsum(count)]), exclude.slots[here] - self.first)


class LocalShards:
    """Shards in this process: what the others are compared with, and one machine's bank in parts.

    Args:
        tables: [N, D] rows of the main view, then of the aux one.
        valid: bool [N], filled slots.
        cuts: First slot of each shard, and N.
    """

    def __init__(self, tables: Sequence[Table], valid: NDArray[np.bool_], cuts: Sequence[int]) -> None:
        self._shards = [Shard(a, b - a) for a, b in pairwise(cuts)]
        self._tables, self._valid = tables, valid

    def filled(self) -> Ids:
        """See `Shards.filled`."""
        return np.array([self._valid[self._part(shard)].sum() for shard in self._shards], np.int64)

    def widest(self) -> int:
        """See `Shards.widest`."""
        return max(shard.size for shard in self._shards)

    def begin(self, queries: Sequence[NDArray], plan: CascadePlan, exclude: Exclusions) -> Ids:
        """See `Shards.begin`."""
        counts = []
        for shard in self._shards:
            part = self._part(shard)
            tables = [table[part] for table in self._tables]
            counts.append(shard.begin(queries, tables, self._valid[part], plan, exclude))
        return np.stack(counts)

    def histogram(self, view: int, digit: int, prefix_B: Keys) -> Ids:
        """See `Shards.histogram`."""
        return np.stack([shard.histogram(view, digit, prefix_B) for shard in self._shards])

    def keep(self, view: int, threshold_B: Keys, equals_PB: Ids) -> None:
        """See `Shards.keep`."""
        for shard, equals in zip(self._shards, equals_PB, strict=True):
            shard.keep(view, threshold_B, equals)

    def best(self, view: int, k: int) -> tuple[Ids, Scores]:
        """See `Shards.best`."""
        found = [shard.best(view, k) for shard in self._shards]
        return np.stack([ids for ids, _ in found]), np.stack([scores for _, scores in found])

    @staticmethod
    def _part(shard: Shard) -> slice:
        return slice(shard.first, shard.first + shard.size)


def _mine_block(
    shards: Shards, queries: Sequence[NDArray], plan: CascadePlan, sizes: tuple[int, ...], exclude: Exclusions
) -> tuple[Ids, Scores, Ids]:
    allowed = shards.begin(queries, plan, exclude).sum(axis=0)
    left = allowed
    for view, size in zip(plan.views[:-1], sizes[:-1], strict=True):
        if (left > size).any():
            _narrow(shards, view, np.where(left > size, size, 0))
        left = np.minimum(left, size)
    ids, scores = _merged(*shards.best(plan.views[-1], sizes[-1]))
    return ids, scores, np.minimum(np.array(sizes, np.int64)[None], allowed[:, None])


def _narrow(shards: Shards, view: int, size_B: Ids) -> None:
    """One stage: keep the `size` best of each query; 0 keeps all."""
    rows = np.arange(len(size_B))
    prefix, wanted = np.zeros(len(size_B), np.uint32), np.maximum(size_B, 1)
    here = np.zeros((0, len(size_B)), np.int64)
    for digit in range(DIGITS):
        counts = shards.histogram(view, digit, prefix)
        reached = counts.sum(axis=0)[:, ::-1].cumsum(axis=1)  # how many have these 8 bits or higher ones, from 255 down
        place = (reached >= wanted[:, None]).argmax(axis=1)
        wanted = wanted - np.where(place > 0, reached[rows, np.maximum(place - 1, 0)], 0)
        prefix = (prefix << np.uint32(8)) | (255 - place).astype(np.uint32)
        here = counts[:, rows, 255 - place]
    # The last counts are the equals at the threshold; shards come in the order of their slots.
    before = np.cumsum(here, axis=0) - here
    equals = np.clip(wanted[None] - before, 0, here)
    every = size_B == 0
    shards.keep(view, np.where(every, np.uint32(0), prefix), np.where(every[None], 0, equals))


def _merged(ids_PBk: Ids, scores_PBk: Scores) -> tuple[Ids, Scores]:
    shards, rows, k = ids_PBk.shape
    ids = ids_PBk.transpose(1, 0, 2).reshape(rows, shards * k)
    scores = scores_PBk.transpose(1, 0, 2).reshape(rows, shards * k)
    order = np.lexsort((np.where(ids < 0, np.iinfo(np.int64).max, ids), -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _keys(score_BN: Scores) -> Keys:
    bits = (score_BN + np.float32(0)).view(np.uint32)  # -0.0 and 0.0 are one score
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)
