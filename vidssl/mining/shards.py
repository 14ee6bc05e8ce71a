"""How is a bank mined that no machine can hold? Every shard looks at its own slots, and the cut of a stage is agreed upon.

Only order statistics matter to a cascade: what a stage keeps is what lies above a threshold. Mostly one question is enough:
the brackets of all stages, guessed from a sample of the bank (see `vidssl.mining.brackets`), go to all shards; each answers
with what lies in them and how much lies above, and from that the cut of every stage follows, as it does from the blocks of
one large bank (see `vidssl.mining.stream`), or it is found to lie outside its bracket.

Then, for these queries only, the shards count. Scores are read as 32-bit numbers of the same order; four times each shard
says how many candidates have which next 8 bits under the prefix that was found so far, and the sums fix 8 bits of the
threshold. Equals at the threshold are settled by slot, which is the order of the shards, because each holds a contiguous
range. The last stage merges the shards' best k. Either way ids come back as one machine would give them, in the same
order, wherever the scores themselves are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vidssl.errors import BankError
from vidssl.mining.brackets import Brackets, Sample, guess
from vidssl.mining.cascade import MineResult
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.plan import CascadePlan
from vidssl.mining.rows import Table
from vidssl.mining.shard import Ids, Keys, Part, Scores, Shard
from vidssl.mining.stream import Piece, settled
from vidssl.mining.task import Task

__all__ = ["OPEN_UP_TO", "LocalShards", "Shards", "cut_points", "mine_sharded"]

DIGITS = 4
"""Rounds of 8 bits that make a threshold."""
BUDGET = 256 << 20
"""Bytes of scores that a shard may hold at once; larger batches are cut."""
OPEN_UP_TO = 4096
"""Filled slots up to which a shard sends all its scores: that is less than to ask again."""


class Shards(Protocol):
    """The questions that go to all shards at once; answers are stacked in the order of their slots. P shards."""

    def filled(self) -> int:
        """Filled slots of all of them."""
        ...

    def seen(self, slots: Ids) -> NDArray[np.bool_]:
        """Which slots of the whole bank are filled."""
        ...

    def widest(self) -> int:
        """Slots of the largest shard."""
        ...

    def scan(
        self, queries: Sequence[NDArray], plan: CascadePlan, exclude: Exclusions, brackets: Brackets
    ) -> Sequence[Piece]:
        """As `Shard.scan`, of all shards, one after the other."""
        ...

    def begin(self, queries: Sequence[NDArray], plan: CascadePlan, exclude: Exclusions) -> None:
        """Score these queries; every allowed slot is a candidate."""
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
    sample: Sample | None = None,
    budget_bytes: int = BUDGET,
) -> MineResult:
    """As `vidssl.mining.cascade.mine`, of a bank in shards.

    Args:
        shards: Who holds the slots.
        queries: float32 [B, D] rows of the main view, then of the aux one.
        plan: Of the whole bank.
        exclude: Slots of the whole bank that each query may not mine.
        sample: Of the bank, to guess from where the stages cut; without one every cut is searched bit by bit. The better
            it is, the less is asked; the result does not depend on it.
        budget_bytes: Memory of the scores of one shard.

    Raises:
        BankError: a strategy that cannot be told from a part of the bank, or rows that are not finite.
    """
    if plan.traits.ranks:
        raise BankError(
            f"mining.strategy={plan.strategy} ranks the whole bank, which no shard holds; type mining.strategy=cascade or sum"
        )
    task = _task(shards, queries[: 2 if plan.needs_aux else 1], plan, exclude)
    ids = np.full((task.rows, plan.k), -1, np.int64)
    scores, missed = np.full(ids.shape, -np.inf, np.float32), np.ones(task.rows, bool)
    if (brackets := _brackets(task, sample)) is not None:
        for rows, part in _blocks(task, budget_bytes, brackets.share * shards.widest()):
            ids[rows], scores[rows], missed[rows] = _scanned(shards, part, brackets.part(rows.start, rows.stop))
    if missed.any():
        again = np.flatnonzero(missed)
        for rows, part in _blocks(task.only(again), budget_bytes, shards.widest()):
            ids[again[rows]], scores[again[rows]] = _searched(shards, part)
    survivors = np.minimum(np.array(task.sizes, np.int64)[None], task.allowed[:, None])
    return MineResult(ids, scores, (ids >= 0).sum(1).astype(np.int64), survivors)


def cut_points(n_slots: int, shards: int) -> list[int]:
    """First slots of contiguous shards of nearly equal size, and N.

    Raises:
        BankError: more shards than slots, or none.
    """
    if not 1 <= shards <= n_slots:
        raise BankError(f"mining.shards={shards} of {n_slots} slots: between 1 and {n_slots} are allowed")
    return [n_slots * shard // shards for shard in range(shards + 1)]


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

    def filled(self) -> int:
        """See `Shards.filled`."""
        return int(self._valid.sum())

    def seen(self, slots: Ids) -> NDArray[np.bool_]:
        """See `Shards.seen`."""
        return self._valid[slots]

    def widest(self) -> int:
        """See `Shards.widest`."""
        return max(shard.size for shard in self._shards)

    def scan(
        self, queries: Sequence[NDArray], plan: CascadePlan, exclude: Exclusions, brackets: Brackets
    ) -> Sequence[Piece]:
        """See `Shards.scan`."""
        found = [
            shard.scan(queries, self._part(shard, len(queries)), plan, exclude, brackets) for shard in self._shards
        ]
        return [piece for pieces in found for piece in pieces]

    def begin(self, queries: Sequence[NDArray], plan: CascadePlan, exclude: Exclusions) -> None:
        """See `Shards.begin`."""
        for shard in self._shards:
            shard.begin(queries, self._part(shard, len(queries)), plan, exclude)

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

    def _part(self, shard: Shard, views: int) -> Part:
        here = slice(shard.first, shard.first + shard.size)
        return Part([table[here] for table in self._tables[:views]], self._valid[here])


def _task(shards: Shards, queries: Sequence[NDArray], plan: CascadePlan, exclude: Exclusions) -> Task:
    """The batch without a bank: of what it excludes only what is filled counts."""
    filled, kept = shards.filled(), exclude.kept(shards.seen(exclude.slots))
    if not all(np.isfinite(query).all() for query in queries):
        raise BankError("a query is not finite; mine with finite unit rows only")
    queries = [np.asarray(query, np.float32) for query in queries]
    elsewhere = np.empty((1 + kept.slots.max(initial=0), 0), np.float32)  # only its height is looked at
    return Task(queries, [elsewhere], plan, plan.sizes(filled), kept, None, filled, 1, 0)


def _brackets(task: Task, sample: Sample | None) -> Brackets | None:
    if task.filled <= OPEN_UP_TO:
        none = np.zeros((0, task.rows), np.float32)
        return Brackets(none, none, 1.0)
    return None if sample is None or not len(sample.slots) else guess(task, sample)


def _blocks(task: Task, budget: int, slots: float) -> list[tuple[slice, Task]]:
    """Parts of the batch whose scores of so many slots fit into the budget."""
    block = int(max(1, budget // max(1, 12 * len(task.queries) * slots)))
    starts = range(0, task.rows, block)
    return [(slice(a, b := min(a + block, task.rows)), task.part(a, b)) for a in starts]


def _scanned(shards: Shards, task: Task, brackets: Brackets) -> tuple[Ids, Scores, NDArray[np.bool_]]:
    pieces = shards.scan(task.wide, task.plan, task.exclude, brackets)
    views = [0] if task.plan.traits.fuses else list(range(len(task.queries)))
    return settled(task, brackets, pieces, views)


def _searched(shards: Shards, task: Task) -> tuple[Ids, Scores]:
    plan, left = task.plan, task.allowed
    shards.begin(task.wide, plan, task.exclude)
    for view, size in zip(plan.views[:-1], task.sizes[:-1], strict=True):
        if (left > size).any():
            _narrow(shards, view, np.where(left > size, size, 0))
        left = np.minimum(left, size)
    return _merged(*shards.best(plan.views[-1], task.sizes[-1]))


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
