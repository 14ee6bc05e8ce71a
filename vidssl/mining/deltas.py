"""How does a mirror keep up with a bank? It says what it has seen, and gets the rows that were written since.

Every row that is written gets the next number of one counter; the bank keeps the latest number of every slot (8 bytes a
slot, nothing grows). A mark is a number: what has a higher one was written since. A delta may be cut (`more`), oldest
writes first, and loses nothing by it: a row that is written while it is gathered is sent again with the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.mapped import Fitted

__all__ = ["Delta", "Mark", "oldest"]


@dataclass(frozen=True)
class Mark:
    """What a mirror has seen.

    Attributes:
        bank: Which bank, by a number drawn when it was made: another one is mirrored from its beginning.
        writes: The counter of that bank's writes up to which it was seen.
        fits: The number of its mining space.
    """

    bank: int
    writes: int
    fits: int


@dataclass(frozen=True)
class Delta:
    """Rows that were written since a mark.

    Attributes:
        mark: To ask with next time.
        fresh: The mark given was none of this bank's: the mirror begins empty.
        more: Whether the bank holds writes beyond `mark`.
        slots: int64 [M], each once.
        rows: view → [M, D] as the bank keeps them (see `vidssl.mining.rows`).
        version: int64 [M], step of each row's write.
        step: The bank's newest step.
        fitted: The space to mine in, where it is another one than the mark's.
    """

    mark: Mark
    fresh: bool
    more: bool
    slots: NDArray[np.int64]
    rows: Mapping[str, NDArray]
    version: NDArray[np.int64]
    step: int
    fitted: Fitted | None

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.slots.nbytes + self.version.nbytes + sum(rows.nbytes for rows in self.rows.values())


def oldest(stamps_N: NDArray[np.int64], since: int, upto: int, at_most: int) -> tuple[NDArray[np.int64], int]:
    """Slots written after `since`, the `at_most` of the oldest writes, and the number up to which that is all.

    The numbers may rise while this looks at them: a slot that rises out of reach has a number above the one returned.

    Args:
        stamps_N: int64 [N], number of each slot's last write.
        since: Number that was seen.
        upto: The counter before this was called.
        at_most: At least 1.
    """
    slots = np.flatnonzero(stamps_N > since)
    if len(slots) <= at_most:
        return slots, upto
    stamps = stamps_N[slots]
    cut = int(np.partition(stamps, at_most - 1)[at_most - 1])
    return slots[stamps <= cut], min(cut, upto)
