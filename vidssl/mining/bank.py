"""What does every video look like at present? One slot per video and view, overwritten whenever the video is seen.

The bank knows no labels. Rows are checked once, on the way in, so that whatever reads them may trust them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vidssl.batch import Embeddings, Positives
from vidssl.errors import BankError
from vidssl.mining.cascade import Backend, mine
from vidssl.mining.exclusions import Exclusions, GroupIndex
from vidssl.mining.plan import CascadePlan

__all__ = ["DTYPES", "EmbeddingBank"]

DTYPES = ("float32", "float16")
UNIT_TOLERANCE = 1e-2
"""How far the length of a row may be from one: float16 and autocast lose a little, a forgotten normalisation much more."""


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

    def push(self, rows: Embeddings) -> int:
        """Write one worker's rows; of a slot that occurs twice the last row stays. Writing twice changes nothing.

        Returns:
            Slots written.

        Raises:
            BankError: other views or widths than the bank's, slots outside it, rows that are not finite unit rows. The
                bank is then as it was before.
        """
        slots, views = self._checked(rows)
        _, from_end = np.unique(slots[::-1], return_index=True)
        last = np.sort(len(slots) - 1 - from_end)
        with self._lock:
            for view, table in self.views.items():
                table[slots[last]] = views[view][last]
            self.version[slots[last]] = rows.step
            self.step = max(self.step, rows.step)
        return len(last)

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
        oldest: int = 0,
        budget_bytes: int | None = None,
        threads: int = 1,
    ) -> Positives:
        """Positives of videos whose own rows in the bank are the queries.

        Args:
            ids: int64 [B].
            plan: Stages, sizes, views.
            main: Name of the view that mines first.
            aux: Name of the trained view, whose rows come back as vectors.
            backend: As in `vidssl.mining.cascade.mine`.
            oldest: Rows last written before this step count as unfilled (encoders were exchanged since).
            budget_bytes: As in `vidssl.mining.cascade.mine`.
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
            step, valid = self.step, self.version >= max(oldest, 0)
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
            budget_bytes=budget_bytes,
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
            norm = np.linalg.norm(values.astype(np.float32), axis=1)
            if not (np.abs(norm - 1) <= UNIT_TOLERANCE).all():  # false for NaN and infinity too
                bad = int(np.flatnonzero(~(np.abs(norm - 1) <= UNIT_TOLERANCE))[0])
                said = f"{view} row of instance {slots[bad]} at step {rows.step} has length {norm[bad]:.3g}"
                raise BankError(f"{said}; only finite unit rows are taken")
        return slots, views

    def _checked_slots(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        slots = np.asarray(ids, np.int64).reshape(-1)
        if slots.size and not (slots.min() >= 0 and slots.max() < self.n_slots):
            raise BankError(f"instance ids {slots.min()}..{slots.max()} do not fit a bank of {self.n_slots} slots")
        return slots
