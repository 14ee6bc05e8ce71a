"""What of a push may be written? Looked at once, on the way in, wherever the rows lie; whatever reads them may trust them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidssl.batch import Embeddings
from vidssl.errors import BankError
from vidssl.mining.rows import floats

__all__ = ["Arrived", "Taken", "arrived", "check_views", "checked_slots", "fault_in"]

UNIT_TOLERANCE = 1e-2
"""How far the length of a row may be from one: float16 and autocast lose a little, a forgotten normalisation much more."""


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


@dataclass(frozen=True)
class Arrived:
    """The good rows of a push, each slot once: of a slot that occurs twice the last row.

    Attributes:
        slots: int64 [M].
        views: view → [M, D].
        bad: Rows left out.
        first: The first of them in words; "" where there is none.
    """

    slots: NDArray[np.int64]
    views: Mapping[str, NDArray]
    bad: int
    first: str

    def taken(self, written: int) -> Taken:
        """What is said of it where so many were written; the others' slots held newer ones."""
        return Taken(written, self.bad, len(self.slots) - written, self.first)

    def only(self, rows: NDArray[np.int64]) -> Arrived:
        """Some of the rows."""
        return Arrived(self.slots[rows], {view: values[rows] for view, values in self.views.items()}, 0, "")


def arrived(rows: Embeddings, views: Collection[str], n_slots: int, dim: int) -> Arrived:
    """What of a push a bank of these views, slots and width may write.

    Raises:
        BankError: other views or widths than the bank's, or slots outside it.
    """
    slots, given = checked_slots(rows.instance, n_slots), {view: np.asarray(rows.views[view]) for view in rows.views}
    if set(given) != set(views):
        raise BankError(f"the bank holds {', '.join(views)}; a push brought {', '.join(given) or 'no view'}")
    for view, values in given.items():
        if values.shape != (len(slots), dim):
            wanted = (len(slots), dim)
            raise BankError(f"{view} rows of step {rows.step} have shape {values.shape}, not {wanted}")
    good, first = _good_rows(given, slots, rows.step)
    kept = np.flatnonzero(good)
    _, from_end = np.unique(slots[kept][::-1], return_index=True)
    last = kept[np.sort(len(kept) - 1 - from_end)]
    return Arrived(slots[last], {view: values[last] for view, values in given.items()}, int((~good).sum()), first)


def checked_slots(ids: NDArray[np.int64], n_slots: int) -> NDArray[np.int64]:
    """int64 [M] slots of a bank.

    Raises:
        BankError: some lie outside it.
    """
    slots = np.asarray(ids, np.int64).reshape(-1)
    if slots.size and not (slots.min() >= 0 and slots.max() < n_slots):
        raise BankError(f"instance ids {slots.min()}..{slots.max()} do not fit a bank of {n_slots} slots")
    return slots


def check_views(asked: Collection[str], views: Collection[str]) -> None:
    """Refuse to mine views that the bank has not.

    Raises:
        BankError: it has not.
    """
    if unknown := set(asked) - set(views):
        raise BankError(f"the bank holds {', '.join(views)}, not {', '.join(sorted(unknown))}")


def fault_in(view: str, kept: NDArray, version: NDArray[np.int64], start: int) -> str | None:
    """The first filled slot without a finite unit row, in words; None where all rows are as a push brings them.

    Args:
        view: Its name.
        kept: Rows of one view as they are kept, the first of them of slot `start`.
        version: Of the same slots, -1 where nothing was written.
        start: See `kept`.
    """
    norm = _lengths(kept)
    bad = np.flatnonzero((version >= 0) & ~_is_unit(norm))
    return f"{view} row of slot {start + bad[0]} has length {norm[bad[0]]:.3g}" if bad.size else None


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
        return np.linalg.norm(floats(rows), axis=1)


def _is_unit(length: NDArray[np.float32]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return np.abs(length - 1) <= UNIT_TOLERANCE  # false for NaN and infinity too
