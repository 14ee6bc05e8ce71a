"""What is asked of all shards at once: the questions of a batch, and a snapshot of one moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from cluster.bank.shard_actor import Asked, Written
from cluster.bank.shard_watch import ShardGone, ShardWatch
from vidssl.errors import StorageError
from vidssl.mining.brackets import Brackets
from vidssl.mining.exclusions import Exclusions
from vidssl.mining.moments import Facts
from vidssl.mining.parts import RowsPart
from vidssl.mining.plan import CascadePlan
from vidssl.mining.shard import Keys, Scores
from vidssl.mining.stream import Piece

__all__ = ["RayShards", "ShardedMoment"]

INLINE = 100_000
"""Bytes from which on Ray hands an argument over by its store: put there once, not once for each shard."""
WRITE_S = 3600.0

Ids = NDArray[np.int64]


class RayShards:
    """`vidssl.mining.shards.Shards` over actors: one round asks all of them at once.

    What has no answer (to begin, to keep) travels with the next question.

    Args:
        watch: Which shards are there.
        asked: By whom and how rows are compared.
        cuts: First slot of each shard, and N.
        version: int64 [N], -1 where a slot is not filled.
        filled: How many are.
    """

    def __init__(self, watch: ShardWatch, asked: Asked, cuts: Ids, version: Ids, filled: int) -> None:
        self._watch, self._asked, self._cuts, self._version, self._filled = watch, asked, cuts, version, filled
        self._queries: Any = None
        self._waiting: list[list[tuple[str, tuple[Any, ...]]]] = [[] for _ in watch.actors]

    def filled(self) -> int:
        """See `Shards.filled`."""
        return self._filled

    def seen(self, slots: Ids) -> NDArray[np.bool_]:
        """See `Shards.seen`."""
        return self._version[slots] >= 0

    def widest(self) -> int:
        """See `Shards.widest`."""
        return int(np.diff(self._cuts).max())

    def scan(
        self, queries: Sequence[NDArray], plan: CascadePlan, exclude: Exclusions, brackets: Brackets
    ) -> Sequence[Piece]:
        """See `Shards.scan`."""
        self._take(queries)
        found = self._ask("scan", exclude, brackets)
        return [piece for pieces in found for piece in pieces]

    def begin(self, queries: Sequence[NDArray], plan: CascadePlan, exclude: Exclusions) -> None:
        """See `Shards.begin`."""
        self._take(queries)
        for waiting in self._waiting:
            waiting.append(("begin", (exclude,)))

    def histogram(self, view: int, digit: int, prefix_B: Keys) -> Ids:
        """See `Shards.histogram`."""
        return np.stack(self._ask("histogram", view, digit, prefix_B))

    def keep(self, view: int, threshold_B: Keys, equals_PB: Ids) -> None:
        """See `Shards.keep`."""
        for waiting, equals in zip(self._waiting, equals_PB, strict=True):
            waiting.append(("keep", (view, threshold_B, equals)))

    def best(self, view: int, k: int) -> tuple[Ids, Scores]:
        """See `Shards.best`."""
        found = self._ask("best", view, k)
        return np.stack([ids for ids, _ in found]), np.stack([scores for _, scores in found])

    def _take(self, queries: Sequence[NDArray]) -> None:
        large = sum(query.nbytes for query in queries) > INLINE
        self._queries = ray.put(list(queries)) if large else list(queries)

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        self._watch.check()
        calls = {}
        for shard, actor in enumerate(self._watch.actors):
            waiting, self._waiting[shard] = self._waiting[shard], []
            calls[shard] = actor.run.remote(self._asked, self._queries, [*waiting, (method, arguments)])
        self._queries = None
        return self._watch.answers(calls)


class ShardedMoment:
    """A moment of a bank in shards; see `cluster.bank.rows.PartedMoment`.

    Args:
        facts: Of the whole bank.
        watch: Which shards are there.
        moments: What each shard calls its own.
    """

    def __init__(self, facts: Facts, watch: ShardWatch, moments: Sequence[int]) -> None:
        self.facts, self._watch, self._moments = facts, watch, moments
        self.kept_rows = self.most_bytes = 0

    def __enter__(self) -> ShardedMoment:
        """See `PartedMoment`."""
        return self

    def __exit__(self, *error: object) -> None:
        """See `PartedMoment`."""
        for actor, moment in zip(self._watch.actors, self._moments, strict=True):
            actor.release.remote(moment)

    def write(self, path: Path, step: int) -> Sequence[RowsPart]:
        """See `vidssl.mining.snapshots.InParts`."""
        calls = {
            shard: actor.write.remote(moment, str(path / f"part-{shard}"), step)
            for shard, (actor, moment) in enumerate(zip(self._watch.actors, self._moments, strict=True))
        }
        # Who still writes below `path` when it is removed would bring it back: all have ended before one's error is raised.
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=WRITE_S)
        try:
            written: list[Written] = self._watch.answers(calls, WRITE_S)
        except ShardGone as error:
            raise StorageError(
                f"the bank snapshot of step {step} is not written: {error}; older snapshots stay"
            ) from error
        self.kept_rows = sum(one.kept_rows for one in written)
        self.most_bytes = sum(one.most_bytes for one in written)
        return [one.part for one in written]
