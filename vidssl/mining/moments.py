"""How is a bank read as of one moment while it is written? Block by block, and what is about to be overwritten is kept.

Taking a moment costs nothing. A block is copied under the bank's lock for a millisecond or two; a row that is written
before its block was copied is set aside first, as it was (its number of write, see `vidssl.mining.deltas`, says whether
that was done already). So a push waits for one small copy at most, never for a disk. Memory: the buffers of one block,
and each row that is overwritten meanwhile once, until its block was read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.mapped import MappedRows

__all__ = ["BLOCK_ROWS", "Facts", "Moment"]

BLOCK_ROWS = 65_536
_ROWS_UNDER_LOCK = 4096
_PAUSE_S = 2e-4
"""Between two copies: who waits for a lock that is taken again at once waits for all of them."""


@dataclass(frozen=True)
class Facts:
    """What a bank is, beside its rows.

    Attributes:
        n_slots: N.
        dim: D.
        views: Names.
        dtype: Of the rows.
        group: int64 [N].
        step: Newest step that was written.
        mapped: The space that it mines in, without its images.
    """

    n_slots: int
    dim: int
    views: tuple[str, ...]
    dtype: str
    group: NDArray[np.int64]
    step: int
    mapped: MappedRows


class Moment:
    """A bank as it was when this was made; made and closed by `EmbeddingBank.moment`.

    Args:
        facts: Of the bank.
        arrays: Name → [N, …], the bank's live arrays: "version" and one per view.
        stamps: int64 [N], the bank's live numbers of writes.
        writes: Its counter at this moment.
        lock: Under which the arrays are written; held by the caller.
        closed: Called with this one, under the lock, when it is closed.

    Attributes:
        facts: Of the bank at this moment.
        kept_rows: Rows that were set aside so far because they were overwritten.
        most_bytes: Most memory that it took, buffers and rows set aside.
    """

    def __init__(
        self,
        facts: Facts,
        arrays: Mapping[str, NDArray],
        stamps: NDArray[np.int64],
        writes: int,
        lock: threading.Lock,
        closed: Callable[[Moment], None],
    ) -> None:
        self.facts, self._closed = facts, closed
        self._arrays, self._stamps, self._writes, self._lock = arrays, stamps, writes, lock
        self._next = 0
        self._kept: list[tuple[NDArray[np.int64], dict[str, NDArray]]] = []
        self._kept_bytes = self._buffer_bytes = 0
        self.kept_rows = self.most_bytes = 0

    def __enter__(self) -> Moment:
        """Close it when the block ends."""
        return self

    def __exit__(self, *error: object) -> None:
        """See `close`."""
        self.close()

    def close(self) -> None:
        """Nothing is set aside any more; what was is forgotten."""
        with self._lock:
            self._closed(self)
            self._kept, self._kept_bytes = [], 0

    def keep(self, slots: NDArray[np.int64]) -> None:
        """Set aside what these slots hold, where it is of this moment and was not read yet. The lock is held.

        Args:
            slots: int64 [M], about to be overwritten.
        """
        late = slots[(slots >= self._next) & (self._stamps[slots] <= self._writes)]
        if not late.size:
            return
        rows = {name: array[late] for name, array in self._arrays.items()}
        self._kept.append((late, rows))
        self.kept_rows += len(late)
        self._kept_bytes += _bytes_of(late, rows)
        self.most_bytes = max(self.most_bytes, self._buffer_bytes + self._kept_bytes)

    def blocks(self) -> Iterator[tuple[slice, Mapping[str, NDArray]]]:
        """Slots and their arrays, in order, once; the arrays are used again for the next block."""
        n_slots = self.facts.n_slots
        rows = min(BLOCK_ROWS, n_slots)
        buffers = {name: np.zeros((rows, *array.shape[1:]), array.dtype) for name, array in self._arrays.items()}
        self._buffer_bytes = sum(buffer.nbytes for buffer in buffers.values())
        self.most_bytes = max(self.most_bytes, self._buffer_bytes)
        for start in range(0, n_slots, rows):
            part = slice(start, min(start + rows, n_slots))
            block = {name: buffer[: part.stop - start] for name, buffer in buffers.items()}
            self._copy(part, block)
            self._put_back(part, block)
            yield part, block

    def _copy(self, part: slice, block: Mapping[str, NDArray]) -> None:
        for start in range(part.start, part.stop, _ROWS_UNDER_LOCK):
            stop = min(start + _ROWS_UNDER_LOCK, part.stop)
            with self._lock:
                for name, array in self._arrays.items():
                    block[name][start - part.start : stop - part.start] = array[start:stop]
                self._next = stop
            time.sleep(_PAUSE_S)

    def _put_back(self, part: slice, block: Mapping[str, NDArray]) -> None:
        with self._lock:  # nothing before the end of this block is set aside any more
            kept, self._kept = self._kept, []
        if not kept:
            return
        slots = np.concatenate([slots for slots, _ in kept])
        rows = {name: np.concatenate([rows[name] for _, rows in kept]) for name in self._arrays}
        here = slots < part.stop
        for name, values in rows.items():
            block[name][slots[here] - part.start] = values[here]
        later = slots[~here], {name: values[~here] for name, values in rows.items()}
        with self._lock:
            self._kept_bytes += _bytes_of(*later) - _bytes_of(slots, rows)
            self._kept.append(later)


def _bytes_of(slots: NDArray[np.int64], rows: Mapping[str, NDArray]) -> int:
    return slots.nbytes + sum(values.nbytes for values in rows.values())
