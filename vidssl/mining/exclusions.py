"""Which slots may a query never mine? Its own and those of its siblings, as one flat list per batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidssl.errors import BankError

__all__ = ["Exclusions", "GroupIndex"]


@dataclass(frozen=True)
class Exclusions:
    """Excluded slots of B queries as compressed rows.

    Attributes:
        indptr: int64 [B+1]; row b is `slots[indptr[b]:indptr[b+1]]`.
        slots: int64 [E]; a slot may occur more than once in a row.
    """

    indptr: NDArray[np.int64]
    slots: NDArray[np.int64]

    @classmethod
    def none(cls, rows: int) -> Exclusions:
        """No exclusions for `rows` queries."""
        return cls(np.zeros(rows + 1, np.int64), np.zeros(0, np.int64))

    @classmethod
    def from_lists(cls, lists: Sequence[ArrayLike]) -> Exclusions:
        """One list of slots per query."""
        rows = [np.asarray(row, np.int64).reshape(-1) for row in lists]
        indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        return cls(indptr, np.concatenate([*rows, np.zeros(0, np.int64)]))

    @property
    def rows(self) -> int:
        """B, the number of queries."""
        return len(self.indptr) - 1

    @property
    def widest(self) -> int:
        """Most slots that one query excludes."""
        return int(np.diff(self.indptr).max(initial=0))

    def row_of_slot(self) -> NDArray[np.int64]:
        """int64 [E]: the query to which each entry of `slots` belongs."""
        return np.repeat(np.arange(self.rows), np.diff(self.indptr))

    def row(self, query: int) -> NDArray[np.int64]:
        """Excluded slots of one query."""
        return self.slots[self.indptr[query] : self.indptr[query + 1]]

    def part(self, start: int, stop: int) -> Exclusions:
        """Exclusions of queries start..stop-1."""
        first, last = self.indptr[start], self.indptr[stop]
        return Exclusions(self.indptr[start : stop + 1] - first, self.slots[first:last])

    def kept(self, here: NDArray[np.bool_], shift: int = 0) -> Exclusions:
        """Only some of the entries (bool [E]), with slots counted from `shift` on."""
        count = np.bincount(self.row_of_slot()[here], minlength=self.rows)
        return Exclusions(np.concatenate([[0], np.cumsum(count)]), self.slots[here] - shift)

    def only(self, rows: NDArray[np.int64]) -> Exclusions:
        """Exclusions of some of the queries."""
        return Exclusions.from_lists([self.row(int(row)) for row in rows])

    def check(self, rows: int, n_slots: int) -> None:
        """Refuse exclusions that do not belong to this batch or bank.

        Raises:
            BankError: another number of queries, or a slot outside 0..N-1.
        """
        if self.rows != rows:
            raise BankError(f"exclusions of {self.rows} queries were given for {rows} queries")
        if self.slots.size and not (self.slots.min() >= 0 and self.slots.max() < n_slots):
            raise BankError(f"an excluded slot is outside 0..{n_slots - 1}; leave padding out of the lists")


class GroupIndex:
    """Slots by group, built once: a batch costs its own siblings, not a comparison of B with N."""

    def __init__(self, group_N: NDArray[np.int64]) -> None:
        self._slots = np.argsort(group_N, kind="stable").astype(np.int64)
        self._sorted = group_N[self._slots]

    def exclusions(self, query_group_B: NDArray[np.int64]) -> Exclusions:
        """All slots of each query's group, ascending."""
        first = np.searchsorted(self._sorted, query_group_B, side="left")
        last = np.searchsorted(self._sorted, query_group_B, side="right")
        return Exclusions.from_lists([self._slots[a:b] for a, b in zip(first, last, strict=True)])
