"""A bank in shards: Ray actors that each hold a contiguous range of the slots, and what stands for all of them.

`ShardedBank` takes pushes and mines like `EmbeddingBank`; where no machine holds 100 M rows, several do. What it mines
is what one bank would mine (see `vidssl.mining.shards`). Here stay the step of each slot's write (8 bytes), the groups and
the space: so a push is looked at and answered here, and sent on without waiting; whoever mines waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.bank.rows import Say
from cluster.bank.shard_actor import Asked, Opened
from cluster.bank.shard_asks import RayShards, ShardedMoment
from cluster.bank.shard_watch import ShardGone, ShardWatch
from cluster.bank.spec import BankSpec
from vidssl.batch import Embeddings, Positives
from vidssl.errors import StorageError
from vidssl.mining.arrivals import Arrived, Taken, arrived, check_views, checked_slots
from vidssl.mining.brackets import Sample, sampled_slots
from vidssl.mining.cascade import Backend
from vidssl.mining.exclusions import GroupIndex
from vidssl.mining.moments import Facts
from vidssl.mining.plan import CascadePlan
from vidssl.mining.rows import stored
from vidssl.mining.shards import OPEN_UP_TO, mine_sharded

__all__ = ["ShardedBank"]

WRITTEN_S = 120.0
AT_HAND_S = (1.0, 2.0)
"""How long who hands out rows waits for a shard, and for how long it does not ask again one that took longer."""
UNANSWERED = 256
"""Pushes to one shard that may be on their way; one that has so many does not answer."""
SAMPLE_ROUNDS = 64
"""Batches that one sample serves: it only says where to look."""

Ids = NDArray[np.int64]


class ShardedBank:
    """As `EmbeddingBank`, of rows that lie in other processes. One batch is mined at a time.

    Args:
        actors: Handles of `ShardActor`, in the order of their slots.
        cuts: First slot of each, and N.
        spec: The run's bank.
        group: int64 [N] or None, as `EmbeddingBank`.
        number: Of this bank, among those of these shards.
        say: Told about shards that were lost.

    Attributes:
        n_slots: N.
        dim: D.
        dtype: Of the rows.
        views: Names of the views.
        group: int64 [N].
        version: int64 [N], step of the last write, -1 where never written.
        step: Newest step that was written, -1 at first.
        mapped: The space that it mines in, without its images.
        watch: Which shards are there.
    """

    def __init__(
        self,
        actors: Sequence[Any],
        cuts: Sequence[int],
        spec: BankSpec,
        group: NDArray[np.int64] | None,
        number: int = 0,
        say: Say = lambda line: None,
    ) -> None:
        self.n_slots, self.dim, self.views, self.dtype = spec.n_slots, spec.dim, spec.views, spec.dtype
        self.group = np.arange(self.n_slots) if group is None else np.asarray(group, np.int64)
        self.version, self.step, self.mapped = np.full(self.n_slots, -1, np.int64), -1, spec.empty_space()
        self.watch = ShardWatch(actors, number, say, self._returned, not spec.deterministic)
        self._number, self._cuts, self._deterministic = number, np.asarray(cuts, np.int64), spec.deterministic
        self._groups, self._mining = GroupIndex(self.group), threading.Lock()
        self._changed = threading.Condition()
        self._filled = self._sent = 0
        self._flying: list[set[int]] = [set() for _ in actors]
        self._told = [0] * len(self.watch.actors)
        self._sample: tuple[object, Sample] | None = None
        self._served, self._slow_until = 0, 0.0

    @property
    def filled(self) -> int:
        """Slots that hold a row."""
        return self._filled

    def begun(self, opened: Sequence[Opened], step: int) -> None:
        """All shards began with these rows, the newest of this step."""
        self.step = step
        for shard, one in enumerate(opened):
            self._returned(shard, one)

    def push(self, rows: Embeddings) -> Taken:
        """As `EmbeddingBank.push`; rows of a shard that is away are lost, and come back as their videos are seen.

        Raises:
            BankError: as there.
            ShardGone: the bank is deterministic, and a shard is away.
        """
        found = arrived(rows, self.views, self.n_slots, self.dim)
        views = {view: stored(values, self.dtype) for view, values in found.views.items()}
        if self._deterministic:
            self.watch.check()
        with self._changed:
            fresh, absent = self.version[found.slots] <= rows.step, list(self.watch.absent)
            write = np.flatnonzero(fresh & ~np.isin(self._owner(found.slots), absent))
            slots = found.slots[write]
            self._filled += int((self.version[slots] < 0).sum())
            self.version[slots] = rows.step
            if len(write):
                self.step = max(self.step, rows.step)
            sent = Arrived(slots, {view: values[write] for view, values in views.items()}, 0, "")
            calls = [(shard, place, self._numbered(shard)) for shard, place in self._owners(slots).items()]
        for shard, place, call in calls:
            self._send(shard, sent.only(place), rows, call)
        return replace(found.taken(len(write)), late=int((~fresh).sum()))

    def rewind(self, step: int) -> None:
        """As `EmbeddingBank.rewind`.

        Raises:
            ShardGone: a shard is away.
        """
        self.settle()
        self.watch.ask("rewind", self._number, step)
        with self._changed:
            np.minimum(self.version, step - 1, out=self.version)
            self.step = min(self.step, step - 1)

    def settle(self) -> None:
        """Wait until the shards have written what was pushed before this call.

        Raises:
            ShardGone: one is away, or does not answer.
        """
        with self._changed:
            before = [set(flying) for flying in self._flying]
            done = self._changed.wait_for(lambda: not any(a & b for a, b in self._pairs(before)), WRITTEN_S)
        if not done:
            for shard, (a, b) in enumerate(self._pairs(before)):
                if a & b:
                    self.watch.lost(shard, f"no answer for {WRITTEN_S:g} s")
        self.watch.check()

    def mine(
        self,
        ids: Ids,
        plan: CascadePlan,
        main: str,
        aux: str,
        *,
        backend: Backend = "auto",
        threads: int = 1,
    ) -> Positives:
        """As `EmbeddingBank.mine`, from everything that was pushed before.

        Args:
            ids: int64 [B].
            plan: Stages, sizes, views.
            main: Name of the view that mines first.
            aux: Name of the trained view.
            backend: Shards have one engine; a recipe that asks for another is refused.
            threads: Of what is done here; the shards have their own.

        Raises:
            BankError: as there, or a strategy that needs the whole bank in one place.
            ShardGone: a shard is away.
        """
        slots = checked_slots(ids, self.n_slots)
        check_views((main, aux), self.views)
        out = Positives.none(len(slots), plan.k, self.dim, plan.depth)
        self.settle()
        with self._mining:
            self._in_one_space()
            step, known = self.step, np.flatnonzero(self.version[slots] >= 0)
            if not known.size:
                return out
            asked = Asked(self._number, plan, main, aux)
            queries, there = self._compared(slots[known], asked)
            known, queries = known[there], [query[there] for query in queries]
            shards = RayShards(self.watch, asked, self._cuts, self.version, self._filled)
            exclude = self._groups.exclusions(self.group[slots[known]])
            found = mine_sharded(shards, queries, asked.compared, exclude, self._sampled(asked))
        out.ids[known], out.survivors[known] = found.ids, found.survivors
        out.vectors[known] = self._fetched(found.ids, aux)
        out.mined_at[known[found.count > 0]] = step
        return out

    def vectors(self, ids: Ids, view: str) -> NDArray[np.float32]:
        """As `EmbeddingBank.vectors`, for who cannot wait long.

        Raises:
            ShardGone: a shard is away, or slow just now.
        """
        if time.monotonic() < self._slow_until:
            raise ShardGone("a shard of the bank is slow")
        try:
            return self._fetched(ids, view, AT_HAND_S[0], True)
        except ShardGone:
            self._slow_until = time.monotonic() + AT_HAND_S[1]
            raise

    def _fetched(self, ids: Ids, view: str, timeout_s: float = WRITTEN_S, patient: bool = False) -> NDArray[np.float32]:
        flat = np.asarray(ids, np.int64).reshape(-1)
        rows = np.zeros((len(flat), self.dim), np.float32)
        there = np.flatnonzero(flat >= 0)
        owners = self._owners(flat[there])
        self.watch.check()
        calls = {
            shard: self.watch.actors[shard].vectors.remote(self._number, flat[there[place]] - self._cuts[shard], view)
            for shard, place in owners.items()
        }
        for place, found in zip(owners.values(), self.watch.answers(calls, timeout_s, patient), strict=True):
            rows[there[place]] = found
        return rows.reshape(*np.shape(ids), self.dim)

    def moment(self) -> ShardedMoment:
        """As `EmbeddingBank.moment`: of what was pushed before, and of what arrives while the shards are asked.

        Raises:
            StorageError: a shard is away.
        """
        try:
            self.settle()
            moments = self.watch.ask("moment", self._number)
        except ShardGone as error:
            raise StorageError(f"the bank snapshot is not written: {error}; older snapshots stay") from error
        mapped = self.mapped.again(self.mapped.fitted)
        facts = Facts(self.n_slots, self.dim, self.views, self.dtype, self.group, self.step, mapped)
        return ShardedMoment(facts, self.watch, moments)

    def _send(self, shard: int, sent: Arrived, rows: Embeddings, call: int) -> None:
        pushed = Embeddings(dict(sent.views), sent.slots - self._cuts[shard], rows.step, rows.rank)
        future = self.watch.actors[shard].push.remote(self._number, pushed).future()
        future.add_done_callback(lambda done: self._answered(shard, call, done.exception()))

    def _numbered(self, shard: int) -> int:
        self._sent += 1
        self._flying[shard].add(self._sent)
        if len(self._flying[shard]) > UNANSWERED:
            self.watch.lost(shard, f"{UNANSWERED} pushes without an answer")
        return self._sent

    def _answered(self, shard: int, call: int, error: BaseException | None) -> None:
        with self._changed:
            known = call in self._flying[shard]  # what a former process took down with it is known already
        if error is not None and known and not isinstance(self.watch.failed(shard, error), ShardGone):
            self.watch.lost(shard, f"{type(error).__name__}: {error}")
        with self._changed:
            self._flying[shard].discard(call)
            self._changed.notify_all()

    def _pairs(self, before: Sequence[set[int]]) -> list[tuple[set[int], set[int]]]:
        return list(zip(before, self._flying, strict=True))

    def _returned(self, shard: int, opened: Opened) -> None:
        part = slice(int(self._cuts[shard]), int(self._cuts[shard + 1]))
        with self._changed:
            self._filled += int((opened.version >= 0).sum()) - int((self.version[part] >= 0).sum())
            self.version[part] = opened.version
            self._flying[shard] = set()
            self._told[shard] = 0
            self._changed.notify_all()

    def _in_one_space(self) -> None:
        """Fit the space anew where it is time to, and tell the shards that do not know it."""
        fitted, fits = self.mapped.renewed(_Patient(self))
        if calls := {
            shard: self.watch.actors[shard].follow.remote(self._number, fitted)
            for shard, told in enumerate(self._told)
            if told != fits
        }:
            self.watch.answers(calls)
            for shard in calls:
                self._told[shard] = fits

    def _sampled(self, asked: Asked) -> Sample | None:
        """Some rows as they are compared, to guess from; drawn anew now and then."""
        about = (self.mapped.fits, asked.plan, self._filled.bit_length(), self._served // SAMPLE_ROUNDS)
        self._served += 1
        if self._filled <= OPEN_UP_TO:
            return None
        if self._sample is None or self._sample[0] != about:
            slots = sampled_slots(self._filled, self.version >= 0)
            rows, there = self._compared(slots, asked)
            rows = [one[there] for one in rows]
            self._sample = about, Sample(slots[there], lambda view: rows[view])
        return self._sample[1]

    def _compared(self, slots: Ids, asked: Asked) -> tuple[list[NDArray[np.float32]], NDArray[np.bool_]]:
        """Rows of slots as they are compared, of each view, and which there are."""
        owners = self._owners(slots)
        calls = {
            shard: self.watch.actors[shard].compared.remote(asked, slots[place] - self._cuts[shard])
            for shard, place in owners.items()
        }
        found, there = self.watch.answers(calls), np.zeros(len(slots), bool)
        rows = [np.empty((len(slots), one.shape[1]), np.float32) for one in found[0][0]]
        for place, (views, known) in zip(owners.values(), found, strict=True):
            there[place] = known
            for into, one in zip(rows, views, strict=True):
                into[place] = one
        return rows, there

    def _owner(self, slots: Ids) -> Ids:
        return np.searchsorted(self._cuts, slots, side="right") - 1

    def _owners(self, slots: Ids) -> Mapping[int, Ids]:
        """Shard → places in `slots` of what it holds."""
        owner = self._owner(slots)
        return {int(shard): np.flatnonzero(owner == shard) for shard in np.unique(owner)}


class _Patient:
    """The bank for who fits a space on its rows, and waits for them."""

    def __init__(self, bank: ShardedBank) -> None:
        self.views, self.version, self.step, self._bank = bank.views, bank.version, bank.step, bank

    def vectors(self, ids: Ids, view: str) -> NDArray[np.float32]:
        """As `EmbeddingBank.vectors`."""
        return self._bank._fetched(ids, view)
