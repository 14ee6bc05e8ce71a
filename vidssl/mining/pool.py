"""How is a bank mined that is too large to be compared with every row? Among some of its slots (`mining.pool_slots`).

The price of a query is linear in the slots it is compared with. A pool of a million of a hundred million slots costs a
hundredth, at the price of the neighbours that are not in it: positives are then the best of the pool. Its rows are
gathered once and serve `every_rows` queries, because gathering a row costs as much as a hundred comparisons with it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vidssl.mining.exclusions import Exclusions
from vidssl.mining.rows import Table

__all__ = ["EVERY_ROWS", "Drawn", "PoolKind", "SlotPool"]

PoolKind = Literal["random", "recent"]

EVERY_ROWS = 1024
"""Queries that one drawing serves: it costs less than a tenth of their mining."""


@dataclass(frozen=True)
class Drawn:
    """A pool, drawn and gathered.

    Attributes:
        slots: int64 [P], rising, so that ties are settled as in the whole bank.
        tables: view → [P, D].
    """

    slots: NDArray[np.int64]
    tables: Mapping[str, Table]

    def within(self, exclude: Exclusions) -> Exclusions:
        """Exclusions by place in the pool; those of slots outside it need none."""
        place = np.minimum(np.searchsorted(self.slots, exclude.slots), len(self.slots) - 1)
        here = self.slots[place] == exclude.slots
        count = np.bincount(exclude.row_of_slot()[here], minlength=exclude.rows)
        return Exclusions(np.concatenate([[0], np.cumsum(count)]), place[here])

    def slots_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots of places in the pool; -1 stays."""
        return np.where(places >= 0, self.slots[np.maximum(places, 0)], -1)


class SlotPool:
    """Draws pools from one bank and keeps the last one. May be asked by several threads.

    Args:
        size: P.
        kind: "random": any filled slots; "recent": those that were written last.
        seed: Of the drawing.
        every_rows: Queries that one drawing serves; 1: every batch has its own, as of the bank's step (deterministic).
    """

    def __init__(self, size: int, kind: PoolKind = "random", seed: int = 0, every_rows: int = EVERY_ROWS) -> None:
        self.size, self.kind, self.seed, self.every_rows = size, kind, seed, every_rows
        self._drawn: Drawn | None = None
        self._served, self._of = 0, None
        self._lock = threading.Lock()

    def drawn(
        self,
        tables: Mapping[str, Table],
        valid: NDArray[np.bool_],
        version: NDArray[np.int64],
        step: int,
        rows: int,
        of: object = None,
    ) -> Drawn | None:
        """The pool that serves the next `rows` queries; None where it would hold every filled slot.

        Args:
            tables: view → [N, D].
            valid: bool [N], filled slots.
            version: int64 [N], step of each row's write.
            step: The bank's newest step.
            rows: Queries of this batch.
            of: What the tables are of; another one than last time's is drawn for anew.
        """
        with self._lock:
            if self._drawn is None or self._served >= self.every_rows or of is not self._of:
                self._of = of
                filled = np.flatnonzero(valid)
                if len(filled) <= self.size:
                    return None
                slots = np.sort(self._choose(filled, version, step))
                self._drawn = Drawn(slots, {view: _gathered(table, slots) for view, table in tables.items()})
                self._served = 0
            self._served += max(rows, 1)
            return self._drawn

    def _choose(self, filled: NDArray[np.int64], version: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        if self.kind == "random":
            return np.random.default_rng((self.seed, step + 1)).choice(filled, self.size, replace=False)
        order = version[filled] * np.int64(len(version)) - filled  # later first, then the lower slot
        return filled[np.argpartition(order, len(filled) - self.size)[len(filled) - self.size :]]


def _gathered(table: Table, slots: NDArray[np.int64]) -> Table:
    return table[slots] if isinstance(table, np.ndarray) else table[torch.from_numpy(slots)]
