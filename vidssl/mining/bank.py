"""What does every video look like at present? One slot per video and view, overwritten whenever the video is seen.

The bank knows no labels. Rows are checked once, on the way in, so that whatever reads them may trust them.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vidssl.batch import Embeddings, Positives
from vidssl.errors import BankError
from vidssl.mining.arrivals import Taken, arrived, check_views, checked_slots, fault_in
from vidssl.mining.cascade import Backend, mine
from vidssl.mining.deltas import Delta, Mark, oldest
from vidssl.mining.device import DeviceCopy
from vidssl.mining.exclusions import Exclusions, GroupIndex
from vidssl.mining.mapped import MappedRows
from vidssl.mining.moments import Facts, Moment
from vidssl.mining.plan import CascadePlan
from vidssl.mining.pool import SlotPool
from vidssl.mining.rows import Table, checked_dtype, floats, storage, stored, table

__all__ = ["DELTA_ROWS", "EmbeddingBank", "Taken", "bad_row"]

DELTA_ROWS = 16_384
"""Most rows of one delta: a mirror that begins gets a large bank in parts."""
_GATHERED_AT_ONCE = 4096
_ROWS_AT_ONCE = 65536


class EmbeddingBank:
    """Rows of N videos under several views, with the step of each row's last write.

    Safe for one writer beside readers: a write is scattered under a lock. A miner on another thread reads live arrays,
    so a row may be newer than the step that its result is stamped with; who needs exactness mines between writes.

    Args:
        n_slots: N; slot = dense instance id.
        dim: D.
        views: Names of the views.
        group: int64 [N], videos cut from one source share a number; None: every video is its own source.
        dtype: "float32", or "float16" or "bfloat16" for half the memory (scores are float32 either way).
        pool: Where it is too large to be mined as a whole: draws the slots to mine among.
        mapped: The space that it mines in; None: the rows as they are.

    Attributes:
        views: view → [N, D] rows as they are kept (see `vidssl.mining.rows`), zeros where never written; `table` and
            `rows` are for who computes with them.
        dtype: As given.
        version: int64 [N], step of the last write, -1 where never written.
        step: Newest step that was written, -1 at first.
        mapped: The rows in the space that is mined in.
        device: Where rows are compared, where that is not here: a miner's GPU.
    """

    def __init__(
        self,
        n_slots: int,
        dim: int,
        views: Sequence[str],
        group: NDArray[np.int64] | None = None,
        dtype: str = "float32",
        pool: SlotPool | None = None,
        mapped: MappedRows | None = None,
    ) -> None:
        if n_slots < 1 or dim < 1 or not views or len(set(views)) != len(views):
            raise BankError(f"a bank needs slots, width and distinct views; given {n_slots}, {dim}, {tuple(views)}")
        self.n_slots, self.dim, self.dtype = n_slots, dim, checked_dtype(dtype)
        self.group = np.arange(n_slots) if group is None else np.array(group, np.int64)
        if self.group.shape != (n_slots,):
            raise BankError(f"groups have shape {self.group.shape}, the bank has {n_slots} slots")
        self.views = {view: np.zeros((n_slots, dim), storage(dtype)) for view in views}
        self.version = np.full(n_slots, -1, np.int64)
        self.step = -1
        self.mapped = mapped or MappedRows("raw")
        self.device: DeviceCopy | None = None
        self._groups, self._pool = GroupIndex(self.group), pool
        self._lock = threading.Lock()
        self._name = secrets.randbits(62)
        self._stamps = np.zeros(n_slots, np.int64)  # number of each slot's last write, 0 where there was none
        self._writes = 0
        self._moments: list[Moment] = []

    @property
    def filled(self) -> int:
        """Slots that hold a row."""
        return int((self.version >= 0).sum())

    @property
    def stamps(self) -> NDArray[np.int64]:
        """int64 [N], the number of each slot's last write among all, 0 where there was none; not copied."""
        return self._stamps

    def push(self, rows: Embeddings) -> Taken:
        """Write one worker's rows; of a slot that occurs twice the last row stays. Writing twice changes nothing.

        A row that is no finite unit row in every view is left out, and so is one whose slot holds a newer row already
        (a push that came out of order): a version never falls.

        Raises:
            BankError: other views or widths than the bank's, or slots outside it. The bank is then as it was before.
        """
        found = arrived(rows, self.views, self.n_slots, self.dim)
        views = {view: stored(values, self.dtype) for view, values in found.views.items()}
        with self._lock:
            write = np.flatnonzero(self.version[found.slots] <= rows.step)
            self._overwrite(found.slots[write], {view: values[write] for view, values in views.items()}, rows.step)
            if len(write):
                self.step = max(self.step, rows.step)
        return found.taken(len(write))

    def rewind(self, step: int) -> None:
        """Count every row as written before `step`, so that a run which goes on there may overwrite all of them."""
        with self._lock:
            self._overwrite(np.flatnonzero(self.version >= step), {}, step - 1)
            self.step = min(self.step, step - 1)

    def changed_since(self, mark: Mark | None, at_most: int = DELTA_ROWS) -> Delta:
        """Rows written since a mark, and the space to mine in where it is a new one, for a mirror's `apply`.

        Args:
            mark: Of the delta that was applied last; None: everything.
            at_most: Most rows of this delta; the oldest writes come first.
        """
        fitted, fits = self.mapped.renewed(self)
        with self._lock:
            step, writes = self.step, self._writes
        fresh = mark is None or mark.bank != self._name
        slots, seen = oldest(self._stamps, 0 if mark is None or fresh else mark.writes, writes, at_most)
        version = np.empty(len(slots), np.int64)
        rows = {view: np.empty((len(slots), self.dim), kept.dtype) for view, kept in self.views.items()}
        for start in range(0, len(slots), _GATHERED_AT_ONCE):
            part = slice(start, start + _GATHERED_AT_ONCE)
            with self._lock:  # a row and its version belong together; the next part may be newer
                version[part] = self.version[slots[part]]
                for view, kept in self.views.items():
                    rows[view][part] = kept[slots[part]]
        seen_fit = None if mark is None or fresh else mark.fits
        news = None if seen_fit == fits else fitted
        return Delta(Mark(self._name, seen, fits), fresh, seen < self._writes, slots, rows, version, step, news)

    def apply(self, delta: Delta) -> None:
        """Follow another bank: after a delta without `more` both hold the same rows and versions and mine in one space.

        Raises:
            BankError: the delta is of a bank with other views, width or dtype (the size is the caller's promise).
        """
        here = {view: (kept.shape[1:], kept.dtype) for view, kept in self.views.items()}
        if {view: (rows.shape[1:], rows.dtype) for view, rows in delta.rows.items()} != here:
            raise BankError("a mirror must have the views, the width and the dtype of the bank that it follows")
        with self._lock:
            if delta.fresh and (filled := np.flatnonzero(self._stamps)).size:
                zeros = {view: np.zeros((), kept.dtype) for view, kept in self.views.items()}
                self._overwrite(filled, zeros, -1)
            self._overwrite(delta.slots, delta.rows, delta.version)
            self.step = delta.step
        if delta.fresh or delta.fitted is not None:
            self.mapped.follow(delta.fitted)

    def fill(self, views: Mapping[str, NDArray], version: NDArray[np.int64], step: int) -> None:
        """Take over all rows of another bank, whatever its dtype.

        Args:
            views: view → [N, D] rows as any bank keeps them.
            version: int64 [N], -1 where nothing was written.
            step: Newest step that was written.
        """
        for start in range(0, self.n_slots, _ROWS_AT_ONCE):
            slots = start + np.flatnonzero(version[start : start + _ROWS_AT_ONCE] >= 0)
            rows = {view: stored(kept[slots], self.dtype) for view, kept in views.items()}
            with self._lock:
                self._overwrite(slots, rows, version[slots])
        self.step = step

    def _overwrite(self, slots: NDArray[np.int64], rows: Mapping[str, NDArray], version: NDArray | int) -> None:
        # The one place where rows change; the lock is held and no slot occurs twice.
        for moment in self._moments:
            moment.keep(slots)
        for view, values in rows.items():
            self.views[view][slots] = values
        self.version[slots] = version
        self._stamps[slots] = np.arange(self._writes + 1, self._writes + 1 + len(slots))
        self._writes += len(slots)

    def exclusions(self, ids: NDArray[np.int64]) -> Exclusions:
        """Slots that these videos may not mine: their own and their siblings'."""
        return self._groups.exclusions(self.group[ids])

    def mine(
        self,
        ids: NDArray[np.int64],
        plan: CascadePlan,
        main: str,
        aux: str,
        *,
        backend: Backend = "auto",
        threads: int = 1,
    ) -> Positives:
        """Positives of videos whose own rows in the bank are the queries.

        Args:
            ids: int64 [B].
            plan: Stages, sizes, views.
            main: Name of the view that mines first.
            aux: Name of the trained view, whose rows come back as vectors.
            backend: As in `vidssl.mining.cascade.mine`.
            threads: As in `vidssl.mining.cascade.mine`.

        Returns:
            One row per id, in order; a video without a row of its own gets nothing. `mined_at` is the bank's newest
            step.

        Raises:
            BankError: ids outside the bank or unknown views.
        """
        slots = checked_slots(ids, self.n_slots)
        check_views((main, aux), self.views)
        kept, names, valid = self.compared(plan, main, aux)
        out = Positives.none(len(slots), plan.k, self.dim, plan.depth)
        with self._lock:
            step, known = self.step, np.flatnonzero(valid[slots])
            queries = [floats(kept[name][slots[known]]) for name in names]
        if not known.size:
            return out
        tables, exclude = self._readable({name: kept[name] for name in names}), self.exclusions(slots[known])
        of, version = kept[names[0]], self.version  # a new space brings a new table
        drawn = None if self._pool is None else self._pool.drawn(tables, valid, version, step, len(known), of)
        if drawn is not None:
            tables, exclude, valid = drawn.tables, drawn.within(exclude), None
        found = mine(
            queries,
            [tables[name] for name in names],
            replace(plan, strategy="single") if plan.traits.joins else plan,
            exclude=exclude,
            valid=valid,
            backend=backend,
            threads=threads,
        )
        ids = found.ids if drawn is None else drawn.slots_of(found.ids)
        out.ids[known], out.survivors[known] = ids, found.survivors
        out.vectors[known] = self.vectors(ids, aux)
        out.mined_at[known[found.count > 0]] = step
        return out

    def compared(
        self, plan: CascadePlan, main: str, aux: str
    ) -> tuple[Mapping[str, NDArray], tuple[str, ...], NDArray[np.bool_]]:
        """Tables that queries are compared with, names of those in their order, and which slots hold a row; not copied."""
        if plan.traits.joins:
            joined, valid = self.mapped.joint(self)
            return {"joint": joined}, ("joint",), valid
        tables, valid = self.mapped.tables(self)
        return tables, (main, aux), valid

    def _readable(self, kept: dict[str, NDArray]) -> Mapping[str, Table]:
        """Tables as the engine reads them, where it reads them."""
        if self.device is None:
            return {name: table(rows) for name, rows in kept.items()}
        return self.device.of(kept, self.mapped.stamps(next(iter(kept.values())), self._stamps))

    def table(self, view: str) -> Table:
        """[N, D] rows of one view as an engine reads them, not copied."""
        return table(self.views[view])

    def vectors(self, ids: NDArray[np.int64], view: str) -> NDArray[np.float32]:
        """float32 [..., D] rows of one view; zeros for -1."""
        with self._lock:
            kept = self.views[view][np.maximum(ids, 0)]
        rows = floats(kept)
        rows[ids < 0] = 0
        return rows

    def moment(self) -> Moment:
        """The bank as it is now, to be read block by block while it goes on (see `vidssl.mining.moments`); close it."""
        arrays = {"version": self.version} | {f"view-{view}": kept for view, kept in self.views.items()}
        with self._lock:
            mapped = self.mapped.again(self.mapped.fitted)
            facts = Facts(self.n_slots, self.dim, tuple(self.views), self.dtype, self.group, self.step, mapped)
            moment = Moment(facts, arrays, self._stamps, self._writes, self._lock, self._moments.remove)
            self._moments.append(moment)
            return moment

    def state(self) -> Mapping[str, NDArray]:
        """The arrays that make up this bank, not copied: "version", "group" and one per view."""
        return {"version": self.version, "group": self.group} | {
            f"view-{view}": rows for view, rows in self.views.items()
        }


def bad_row(bank: EmbeddingBank, first: int = 0) -> str | None:
    """The first filled slot without a finite unit row, in words; None where all rows are as `push` takes them.

    Args:
        bank: Of these slots.
        first: What its slot 0 is called.
    """
    for view, kept in bank.views.items():
        for start in range(0, bank.n_slots, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            if bad := fault_in(view, kept[part], bank.version[part], first + start):
                return bad
    return None
