"""What was mined for every video last, and when? The table that workers are answered from.

A row's positives depend on the bank and not on the step that needs them, so whatever was mined is kept until something
newer takes its place: under overload positives grow older, and none is lost. Memory: 4 k + 4 S + 8 bytes a video.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidssl.batch import Positives
from vidssl.errors import BankError

__all__ = ["NEVER", "Entries", "Pace", "PositiveTable"]

NEVER = 63
"""Urgency of a video for which nothing was ever mined: above any number of epochs."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Entries:
    """Rows of the table, R of them.

    Attributes:
        place: int64 [R], which of the videos that were asked for.
        ids: int64 [R, k], best first, -1 where there is none.
        mined_at: int64 [R].
        survivors: int64 [R, S].
    """

    place: Ids
    ids: Ids
    mined_at: Ids
    survivors: Ids


class PositiveTable:
    """Per video its latest positives and the step they were mined at. Methods may be called from any thread.

    Args:
        n_slots: N.
        k: Positives of a video.
        stages: S.
    """

    def __init__(self, n_slots: int, k: int, stages: int) -> None:
        self._ids = np.full((n_slots, k), -1, np.int32)
        self._survivors = np.zeros((n_slots, stages), np.int32)
        self._mined_at = np.full(n_slots, -1, np.int64)
        self._lock = threading.Lock()

    def keep(self, slots: Ids, found: Positives) -> int:
        """Enter what was mined for these videos; what is there and newer stays. Returns the rows entered."""
        with self._lock:
            rows = np.flatnonzero((found.mined_at >= 0) & (found.mined_at >= self._mined_at[slots]))
            where = slots[rows]
            self._ids[where], self._survivors[where] = found.ids[rows], found.survivors[rows]
            self._mined_at[where] = found.mined_at[rows]
        return len(rows)

    def newer(self, slots: Ids, have: Ids, oldest: Ids) -> Entries:
        """Rows of these videos that were mined after `have` and not before `oldest` (int64 [R], steps).

        Raises:
            BankError: videos outside the table.
        """
        if slots.size and not (slots.min() >= 0 and slots.max() < len(self._ids)):
            raise BankError(f"instance ids {slots.min()}..{slots.max()} do not fit a bank of {len(self._ids)} slots")
        with self._lock:
            mined_at = self._mined_at[slots]
            place = np.flatnonzero((mined_at > have) & (mined_at >= oldest))
            where = slots[place]
            ids, survivors = self._ids[where].astype(np.int64), self._survivors[where].astype(np.int64)
        return Entries(place, ids, mined_at[place], survivors)

    def mined_at(self, slots: Ids) -> Ids:
        """int64 [R], -1 where nothing was mined yet."""
        with self._lock:
            return self._mined_at[slots]

    def urgency(self, slots: Ids, step: int, epoch: int) -> Ids:
        """Whole epochs that their positives will be old at that step; `NEVER` where there are none."""
        mined_at = self.mined_at(slots)
        old = np.clip((step - mined_at) // max(epoch, 1), 0, NEVER - 1)
        return np.where(mined_at >= 0, old, NEVER)

    def inherit(self, other: PositiveTable, step: int, filled: NDArray[np.bool_]) -> None:
        """Take over what another table holds, as mined before `step`; not rows that name a video without a row now."""
        with other._lock:
            ids, mined_at, survivors = other._ids.copy(), other._mined_at.copy(), other._survivors.copy()
        gone = ((ids >= 0) & ~filled[np.maximum(ids, 0)]).any(1)
        with self._lock:
            self._ids, self._survivors = ids, survivors
            self._mined_at = np.where(gone, -1, np.minimum(mined_at, step - 1))


class Pace:
    """How old may positives be by default: one epoch, or what the miners need to come round where that is longer.

    Who mines a quarter of what is needed comes to every video once in four epochs. Positives of that age are what there
    is: leaving them out would leave three of four rows with none. A row that the pass reaches is mined when it is next asked
    for, up to two epochs later (the order of every epoch is another), so the bound is a pass and two epochs.

    Args:
        epoch: Steps of an epoch.
    """

    def __init__(self, epoch: int) -> None:
        self._epoch, self._rows = epoch, 0
        self._began, self._pass, self._former = -1, 0, 0

    def mined(self, rows: int, step: int, known: int) -> None:
        """So many of `known` videos were mined, at this step."""
        if self._began < 0:
            self._began = step
        self._rows += rows
        if self._rows >= max(known, 1):
            self._former, self._pass = self._pass, max(step - self._began, 1)
            self._began, self._rows = step, 0

    def bound(self, step: int) -> int:
        """Largest age in steps that is used at `step`."""
        so_far = step - self._began if self._began >= 0 else 0
        # Miners may have become slower since their last pass; dead ones do not make everything young enough for ever.
        # Where they became faster, what is not replaced yet is as old as the pass before.
        once = max(self._pass, self._former, min(so_far, 4 * self._pass) if self._pass else so_far)
        return self._epoch if once <= 1.1 * self._epoch else once + 2 * self._epoch
