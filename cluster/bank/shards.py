"""A bank in shards: Ray actors that each hold a contiguous range of the slots, and what asks all of them at once.

`ShardedBank` takes pushes and mines like `EmbeddingBank`; where no machine holds 100 M rows, several do. What it mines
is what one bank would mine (see `vidssl.mining.shards`). A shard that dies takes its rows with it: they come back as
their videos are seen, as with a bank that starts empty.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError

from vidssl.batch import Embeddings, Positives
from vidssl.errors import BankError, StorageError
from vidssl.mining.bank import EmbeddingBank, Taken
from vidssl.mining.exclusions import Exclusions, GroupIndex
from vidssl.mining.plan import CascadePlan
from vidssl.mining.shards import Ids, Keys, Scores, Shard, cut_points, mine_sharded

__all__ = ["ShardActor", "ShardedBank", "start_shards"]

ANSWER_S = 120.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ShardActor:
    """Some slots of a bank, in a process of their own.

    Args:
        first: First slot.
        size: How many.
        dim: D.
        views: Names of the views, main first.
        dtype: Of the rows.
    """

    def __init__(self, first: int, size: int, dim: int, views: tuple[str, ...], dtype: str) -> None:
        self._bank = EmbeddingBank(size, dim, views, dtype=dtype)
        self._shard = Shard(first, size)

    def push(self, rows: Embeddings) -> Taken:
        """As `EmbeddingBank.push`; instances are slots of this shard."""
        return self._bank.push(rows)

    def rewind(self, step: int) -> None:
        """As `EmbeddingBank.rewind`."""
        self._bank.rewind(step)

    def state(self) -> tuple[int, int]:
        """Filled slots, and the newest step."""
        return self._bank.filled, self._bank.step

    def rows(self, slots: Ids, view: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Rows [M, D] of slots of this shard, and whether they were ever written."""
        return self._bank.vectors(slots, view), self._bank.version[slots] >= 0

    def begin(self, queries: Sequence[NDArray], views: tuple[str, str], plan: CascadePlan, exclude: Exclusions) -> Ids:
        """As `Shard.begin`, of the rows that are there now."""
        tables = [self._bank.table(view) for view in views]
        return self._shard.begin(queries, tables, self._bank.version >= 0, plan, exclude)

    def histogram(self, view: int, digit: int, prefix_B: Keys) -> Ids:
        """As `Shard.histogram`."""
        return self._shard.histogram(view, digit, prefix_B)

    def keep(self, view: int, threshold_B: Keys, equals_B: Ids) -> None:
        """As `Shard.keep`."""
        self._shard.keep(view, threshold_B, equals_B)

    def best(self, view: int, k: int) -> tuple[Ids, Scores]:
        """As `Shard.best`."""
        return self._shard.best(view, k)


class ShardedBank:
    """As `EmbeddingBank`, of rows that lie in other processes. One batch is mined at a time.

    Args:
        actors: Handles of `ShardActor`, in the order of their slots.
        cuts: First slot of each, and N.
        dim: D.
        views: Names of the views.
        group: int64 [N], as `EmbeddingBank`.

    Attributes:
        n_slots: N.
    """

    def __init__(
        self,
        actors: Sequence[Any],
        cuts: Sequence[int],
        dim: int,
        views: Sequence[str],
        group: NDArray[np.int64] | None = None,
    ) -> None:
        self.n_slots, self.dim, self.views = cuts[-1], dim, tuple(views)
        self._actors, self._cuts = list(actors), np.asarray(cuts, np.int64)
        self._group = np.arange(self.n_slots) if group is None else np.asarray(group, np.int64)
        self._groups, self._lock = GroupIndex(self._group), threading.Lock()

    @property
    def filled(self) -> int:
        """Slots that hold a row."""
        return sum(filled for filled, _ in self._all("state"))

    @property
    def step(self) -> int:
        """Newest step that was written, -1 at first."""
        return max(step for _, step in self._all("state"))

    def push(self, rows: Embeddings) -> Taken:
        """As `EmbeddingBank.push`.

        Raises:
            BankError: as there.
            StorageError: a shard does not answer.
        """
        calls = []
        for shard, place in self._owners(rows.instance).items():
            own = {view: np.asarray(values)[place] for view, values in rows.views.items()}
            slots = rows.instance[place] - self._cuts[shard]
            calls.append(self._actors[shard].push.remote(Embeddings(own, slots, rows.step, rows.rank)))
        taken: list[Taken] = _answers(calls)
        first = next((one.first for one in taken if one.first), "")
        written, bad, late = (sum(getattr(one, name) for one in taken) for name in ("written", "bad", "late"))
        return Taken(written, bad, late, first)

    def rewind(self, step: int) -> None:
        """As `EmbeddingBank.rewind`."""
        self._all("rewind", step)

    def mine(self, ids: NDArray[np.int64], plan: CascadePlan, main: str, aux: str) -> Positives:
        """As `EmbeddingBank.mine`.

        Raises:
            BankError: as there, or a strategy that needs the whole bank in one place.
            StorageError: a shard does not answer.
        """
        if unknown := {main, aux} - set(self.views):
            raise BankError(f"the bank holds {', '.join(self.views)}, not {', '.join(sorted(unknown))}")
        slots = np.asarray(ids, np.int64).reshape(-1)
        out = Positives.none(len(slots), plan.k, self.dim, plan.depth)
        step = self.step
        rows, there = self._rows(slots, main)
        known = np.flatnonzero(there)
        if not known.size:
            return out
        queries = [rows[known], self._rows(slots[known], aux)[0]]
        with self._lock:
            asked = _RayShards(self._actors, (main, aux), np.diff(self._cuts))
            found = mine_sharded(asked, queries, plan, self._groups.exclusions(self._group[slots[known]]))
        out.ids[known], out.survivors[known] = found.ids, found.survivors
        out.vectors[known] = self.vectors(found.ids, aux)
        out.mined_at[known[found.count > 0]] = step
        return out

    def vectors(self, ids: NDArray[np.int64], view: str) -> NDArray[np.float32]:
        """As `EmbeddingBank.vectors`."""
        flat = np.asarray(ids, np.int64).reshape(-1)
        rows = np.zeros((len(flat), self.dim), np.float32)
        there = np.flatnonzero(flat >= 0)
        rows[there] = self._rows(flat[there], view)[0]
        return rows.reshape(*np.shape(ids), self.dim)

    def _rows(self, slots: Ids, view: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows, there = np.zeros((len(slots), self.dim), np.float32), np.zeros(len(slots), bool)
        owners = self._owners(slots)
        calls = [
            self._actors[shard].rows.remote(slots[place] - self._cuts[shard], view) for shard, place in owners.items()
        ]
        for place, (found, known) in zip(owners.values(), _answers(calls), strict=True):
            rows[place], there[place] = found, known
        return rows, there

    def _owners(self, slots: Ids) -> Mapping[int, Ids]:
        """Shard → places in `slots` of what it holds."""
        if slots.size and not (slots.min() >= 0 and slots.max() < self.n_slots):
            raise BankError(f"instance ids {slots.min()}..{slots.max()} do not fit a bank of {self.n_slots} slots")
        owner = np.searchsorted(self._cuts, slots, side="right") - 1
        return {int(shard): np.flatnonzero(owner == shard) for shard in np.unique(owner)}

    def _all(self, method: str, *arguments: object) -> list[Any]:
        return _answers([getattr(actor, method).remote(*arguments) for actor in self._actors])


class _RayShards:
    """`vidssl.mining.shards.Shards` over actors: one round asks all of them at once."""

    def __init__(self, actors: Sequence[Any], views: tuple[str, str], sizes: NDArray[np.int64]) -> None:
        self._actors, self._views, self._sizes = actors, views, sizes

    def filled(self) -> Ids:
        return np.array([filled for filled, _ in self._ask("state")], np.int64)

    def widest(self) -> int:
        return int(self._sizes.max())

    def begin(self, queries: Sequence[NDArray], plan: CascadePlan, exclude: Exclusions) -> Ids:
        return np.stack(self._ask("begin", ray.put(list(queries)), self._views, plan, exclude))

    def histogram(self, view: int, digit: int, prefix_B: Keys) -> Ids:
        return np.stack(self._ask("histogram", view, digit, prefix_B))

    def keep(self, view: int, threshold_B: Keys, equals_PB: Ids) -> None:
        _answers(
            [
                actor.keep.remote(view, threshold_B, equals)
                for actor, equals in zip(self._actors, equals_PB, strict=True)
            ]
        )

    def best(self, view: int, k: int) -> tuple[Ids, Scores]:
        found = self._ask("best", view, k)
        return np.stack([ids for ids, _ in found]), np.stack([scores for _, scores in found])

    def _ask(self, method: str, *arguments: object) -> list[Any]:
        return _answers([getattr(actor, method).remote(*arguments) for actor in self._actors])


def start_shards(
    n_slots: int,
    shards: int,
    dim: int,
    views: Sequence[str],
    group: NDArray[np.int64] | None = None,
    dtype: str = "float32",
    threads: int = 1,
) -> ShardedBank:
    """Start the actors of a bank in shards; they live as long as who called this.

    Args:
        n_slots: N.
        shards: P, at most N.
        dim: D.
        views: Names of the views.
        group: int64 [N], videos cut from one source share a number.
        dtype: Of the rows.
        threads: Of each shard's products.

    Raises:
        BankError: more shards than slots.
        StorageError: an actor did not come up.
    """
    cuts = cut_points(n_slots, shards)
    options: dict[str, Any] = {
        "num_cpus": 0,
        "runtime_env": {"env_vars": dict.fromkeys(_THREAD_VARIABLES, str(threads))},
    }
    remote = ray.remote(**options)(ShardActor)
    actors = [remote.remote(a, b - a, dim, tuple(views), dtype) for a, b in pairwise(cuts)]
    bank = ShardedBank(actors, cuts, dim, views, group)
    _ = bank.filled
    return bank


def _answers(calls: Sequence[Any]) -> list[Any]:
    try:
        return ray.get(list(calls), timeout=ANSWER_S)
    except RayTaskError as error:
        if isinstance(cause := error.cause, BankError):
            raise cause from error
        raise
    except (RayError, TimeoutError) as error:
        raise StorageError(
            f"a shard of the bank does not answer ({type(error).__name__}); look at the run's Ray log and resume it"
        ) from error
