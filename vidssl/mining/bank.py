"""What does every video look like at present? One slot per video and view, overwritten whenever the video is seen.

The bank knows no labels. Rows are checked once, on the way in, so that whatever reads them may trust them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidssl.batch import Embeddings, Positives
from vidssl.errors import BankError
from vidssl.mining.cascade import Backend, mine
from vidssl.mining.exclusions import Exclusions, GroupIndex
from vidssl.mining.plan import CascadePlan

__all__ = ["DTYPES", "EmbeddingBank", "Taken", "bad_row"]

DTYPES = ("float32", "float16")
UNIT_TOLERANCE = 1e-2
"""How far the length of a row may be from one: float16 and autocast lose a little, a forgotten normalisation much more."""
_ROWS_AT_ONCE = 65536


@dataclass(frozen=True)
class Taken:
    """What became of a push.

    Attributes:
        written: Slots written.
        bad: Rows left out because they are no finite unit rows in every view.
        late: Rows left out because their slot holds a newer one.
        first: The first bad row in words; "" where there is none.
    """

    written: int
    bad: int = 0
    late: int = 0
    first: str = ""


class EmbeddingBank:
    """Rows of N videos under several views, with the step of each row's last write.

    Safe for one writer beside readers: a write is scattered under a lock. A miner on another thread reads live arrays,
    so a row may be newer than the step that its result is stamped with; who needs exactness mines between writes.

    Args:
        n_slots: N; slot = dense instance id.
        dim: D.
        views: Names of the views.
        group: int64 [N], videos cut from one source share a number; None: every video is its own source.
        dtype: "float32", or "float16" for half the memory (scores are float32 either way).

    Attributes:
        views: view → [N, D] rows, zeros where never written.
        version: int64 [N], step of the last write, -1 where never written.
        step: Newest step that was written, -1 at first.
    """

    def __init__(
        self,
        n_slots: int,
        dim: int,
        views: Sequence[str],
        group: NDArray[np.int64] | None = None,
        dtype: str = "float32",
    ) -> None:
        if n_slots < 1 or dim < 1 or not views or len(set(views)) != len(views):
            raise BankError(f"a bank needs slots, width and distinct views; given {n_slots}, {dim}, {tuple(views)}")
        if dtype not in DTYPES:
            raise BankError(f"a bank of dtype {dtype} cannot be made; allowed are {' and '.join(DTYPES)}")
        self.n_slots, self.dim, self.dtype = n_slots, dim, np.dtype(dtype)
        self.group = np.arange(n_slots) if group is None else np.array(group, np.int64)
        if self.group.shape != (n_slots,):
            raise BankError(f"groups have shape {self.group.shape}, the bank has {n_slots} slots")
        self.views = {view: np.zeros((n_slots, dim), self.dtype) for view in views}
        self.version = np.full(n_slots, -1, np.int64)
        self.step = -1
        self._groups = GroupIndex(self.group)
        self._lock = threading.Lock()

    @property
    def filled(self) -> int:
        """Slots that hold a row."""
        return int((self.version >= 0).sum())

    def push(self, rows: Embeddings) -> Taken:
        """Write one worker's rows; of a slot that occurs twice the last row stays. Writing twice changes nothing.

        A row that is no finite unit row in every view is left out, and so is one whose slot holds a newer row already
        (a push that came out of order): a version never falls.

        Raises:
            BankError: other views or widths than the bank's, or slots outside it. The bank is then as it was before.
        """
        slots, views = self._checked(rows)
        good, first = _good_rows(views, slots, rows.step)
        kept = np.flatnonzero(good)
        _, from_end = np.unique(slots[kept][::-1], return_index=True)
        last = kept[np.sort(len(kept) - 1 - from_end)]
        with self._lock:
            write = last[self.version[slots[last]] <= rows.step]
            for view, table in self.views.items():
                table[slots[write]] = views[view][write]
            self.version[slots[write]] = rows.step
            if len(write):
                self.step = max(self.step, rows.step)
        return Taken(len(write), int((~good).sum()), len(last) - len(write), first)

    def rewind(self, step: int) -> None:
        """Count every row as written before `step`, so that a run which goes on there may overwrite all of them."""
        with self._lock:
            np.minimum(self.version, step - 1, out=self.version)
            self.step = min(self.step, step - 1)

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
        slots = self._checked_slots(ids)
        if unknown := {main, aux} - set(self.views):
            raise BankError(f"the bank holds {', '.join(self.views)}, not {', '.join(sorted(unknown))}")
        out = Positives.none(len(slots), plan.k, self.dim, plan.depth)
        with self._lock:
            step, valid = self.step, self.version >= 0
            known = np.flatnonzero(valid[slots])
            queries = [self.views[view][slots[known]] for view in (main, aux)]
        if not known.size:
            return out
        found = mine(
            queries,
            [self.views[main], self.views[aux]],
            plan,
            exclude=self.exclusions(slots[known]),
            valid=valid,
            backend=backend,
            threads=threads,
        )
        out.ids[known], out.survivors[known] = found.ids, found.survivors
        out.vectors[known] = self.vectors(found.ids, aux)
        out.mined_at[known[found.count > 0]] = step
        return out

    def vectors(self, ids: NDArray[np.int64], view: str) -> NDArray[np.float32]:
        """float32 [..., D] rows of one view; zeros for -1."""
        with self._lock:
            rows = self.views[view][np.maximum(ids, 0)].astype(np.float32)
        rows[ids < 0] = 0
        return rows

    def twin(self) -> EmbeddingBank:
        """A copy of this moment, to be written to disk or mined while this bank goes on."""
        other = EmbeddingBank(self.n_slots, self.dim, tuple(self.views), self.group, self.dtype.name)
        with self._lock:
            for view, table in self.views.items():
                other.views[view][:] = table
            other.version[:] = self.version
            other.step = self.step
        return other

    def state(self) -> Mapping[str, NDArray]:
        """The arrays that make up this bank, not copied: "version", "group" and one per view."""
        return {"version": self.version, "group": self.group} | {
            f"view-{view}": rows for view, rows in self.views.items()
        }

    def _checked(self, rows: Embeddings) -> tuple[NDArray[np.int64], dict[str, NDArray]]:
        slots = self._checked_slots(rows.instance)
        if set(rows.views) != set(self.views):
            raise BankError(
                f"the bank holds {', '.join(self.views)}; a push brought {', '.join(rows.views) or 'no view'}"
            )
        views = {view: np.asarray(values) for view, values in rows.views.items()}
        for view, values in views.items():
            if values.shape != (len(slots), self.dim):
                wanted = (len(slots), self.dim)
                raise BankError(f"{view} rows of step {rows.step} have shape {values.shape}, not {wanted}")
        return slots, views

    def _checked_slots(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        slots = np.asarray(ids, np.int64).reshape(-1)
        if slots.size and not (slots.min() >= 0 and slots.max() < self.n_slots):
            raise BankError(f"instance ids {slots.min()}..{slots.max()} do not fit a bank of {self.n_slots} slots")
        return slots


def bad_row(bank: EmbeddingBank) -> str | None:
    """The first filled slot without a finite unit row, in words; None where all rows are as `push` takes them."""
    for view, table in bank.views.items():
        for start in range(0, bank.n_slots, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            norm = _lengths(table[part])
            bad = np.flatnonzero((bank.version[part] >= 0) & ~_is_unit(norm))
            if bad.size:
                return f"{view} row of slot {start + bad[0]} has length {norm[bad[0]]:.3g}"
    return None


def _good_rows(views: Mapping[str, NDArray], slots: NDArray[np.int64], step: int) -> tuple[NDArray[np.bool_], str]:
    good, first = np.ones(len(slots), bool), ""
    for view, values in views.items():
        norm = _lengths(values)
        unit = _is_unit(norm)
        if not unit.all() and not first:
            bad = int(np.flatnonzero(~unit)[0])
            first = f"{view} row of instance {slots[bad]} at step {step} has length {norm[bad]:.3g}"
        good &= unit
    return good, first


def _lengths(rows: NDArray) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # what is not finite is found by its length
        return np.linalg.norm(rows.astype(np.float32), axis=1)


def _is_unit(length: NDArray[np.float32]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return np.abs(length - 1) <= UNIT_TOLERANCE  # false for NaN and infinity too
