"""The bank's rows in the space in which they are mined: a second table, kept up to date by whoever mines.

A push knows nothing of it. Before mining, the rows that were written since (their number of write says so, see
`vidssl.mining.deltas`) are mapped; now and then the space is fitted anew and all of them are. Both happen on the miner's
thread, so no push waits for them. A fit follows from the bank's rows and step alone, and a row's image from the row
alone, to the last bit: a run that goes on from a snapshot mines what it would have mined.

Memory: R ≤ D columns per row and view in the bank's dtype, twice that while a new space is taken over; raw: nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vidssl.mining.rows import stored
from vidssl.mining.space import FIT_ROWS, AskedSpace, Space, fit_space, raw_space, refit_due

__all__ = ["NEVER", "Fitted", "Kept", "Known", "MappedRows"]

_log = logging.getLogger(__name__)
_ROWS_AT_ONCE = 8192
NEVER = 1 << 62
"""`refit_steps` of a bank that is only looked at."""


class Known(Protocol):
    """What a fit asks of a bank, wherever its rows lie."""

    version: NDArray[np.int64]
    step: int

    @property
    def views(self) -> Collection[str]:
        """Names of the views, in order."""
        ...

    def vectors(self, ids: NDArray[np.int64], view: str) -> NDArray[np.float32]:
        """float32 [..., D] rows of one view."""
        ...


class Kept(Known, Protocol):
    """What is asked of a bank whose rows are here; see `vidssl.mining.bank.EmbeddingBank`."""

    n_slots: int
    dtype: str

    @property
    def views(self) -> Mapping[str, NDArray]:
        """Rows of each view as they are kept."""
        ...

    @property
    def stamps(self) -> NDArray[np.int64]:
        """int64 [N], the number of each slot's last write."""
        ...


@dataclass(frozen=True, eq=False)
class Fitted:
    """A space and the moment it is of; a snapshot keeps it.

    Attributes:
        space: The map.
        step: The bank's step when it was fitted.
    """

    space: Space
    step: int


class MappedRows:
    """Rows of one bank in a space of a kind; raw hands out the bank's own tables.

    Args:
        kind: As `mining.space`.
        refit_steps: As `mining.refit_steps`.
        seed: Of the fits.

    Attributes:
        fitted: The present space; None before the first mining.
        fits: How many there have been, the present one included.
    """

    def __init__(self, kind: AskedSpace, refit_steps: int | None = None, seed: int = 0) -> None:
        self.kind: AskedSpace = kind
        self.refit_steps, self.seed = refit_steps, seed
        self.fitted: Fitted | None = None
        self.fits = 0
        self._follows = False
        self._tables: dict[str, NDArray] = {}
        self._joined: NDArray | None = None
        self._joins = False
        self._stamps: NDArray[np.int64] | None = None
        self._lock = threading.Lock()
        self._news = ""

    @property
    def news(self) -> str:
        """Which space it is and why, as of the last time that this changed; "" before."""
        return self._news

    def again(self, fitted: Fitted | None = None) -> MappedRows:
        """The same for another bank (a copy, a snapshot): it maps its own rows, at first with `fitted`."""
        other = MappedRows(self.kind, self.refit_steps, self.seed)
        other.fitted, other.fits = fitted, int(fitted is not None)
        return other

    def renewed(self, bank: Known) -> tuple[Fitted | None, int]:
        """The present space and its number, fitted anew if it is time to: for who mines elsewhere."""
        with self._lock:
            if self.kind != "raw" and self._due(bank):
                self._fit(bank)
            return self.fitted, self.fits

    def follow(self, fitted: Fitted | None) -> None:
        """Take over a space that was fitted elsewhere, and fit none here any more: all miners of a bank mine in one space."""
        with self._lock:
            self._follows, self.fitted, self.fits = True, fitted, self.fits + 1
            self._tables, self._stamps = {}, None

    def tables(self, bank: Kept) -> tuple[Mapping[str, NDArray], NDArray[np.bool_]]:
        """Rows of the bank in the present space, each as new as the bank's own, and which slots hold one.

        Two miners may ask at once: the second waits for what the first one is mapping.

        Returns:
            view → [N, R] as the bank keeps rows (see `vidssl.mining.rows`), and bool [N].
        """
        if self.kind == "raw":
            return bank.views, bank.version >= 0
        with self._lock:
            if self._due(bank):
                self._fit(bank)
            if self.fitted is None or self.fitted.space.kind == "raw":
                return bank.views, bank.version >= 0
            there = self._map(bank, self.fitted.space)
            return self._tables, there

    def joint(self, bank: Kept) -> tuple[NDArray, NDArray[np.bool_]]:
        """Rows of all views side by side, and which slots hold one.

        A row's product with another one is the sum of the views' scores. The tables of the views are columns of this
        one, so it costs no memory beside them; in the raw space it is a table of its own.

        Returns:
            [N, V·R] as the bank keeps rows, and bool [N].
        """
        with self._lock:
            if not self._joins:
                self._joins, self._tables, self._stamps = True, {}, None
            if self.kind != "raw" and self._due(bank):
                self._fit(bank)
            there = self._map(bank, raw_space() if self.fitted is None else self.fitted.space)
            assert self._joined is not None  # for the type checker: made with the tables
            return self._joined, there

    def stamps(self, kept: NDArray, of_bank: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of write that the rows of a table are of: an image may be older than the bank's own row.

        Args:
            kept: A table that was handed out.
            of_bank: The bank's numbers.
        """
        of_images = self._stamps
        mapped = any(kept is table for table in (self._joined, *self._tables.values()))
        return of_images if mapped and of_images is not None else of_bank

    def describe(self) -> str:
        """The present space in words."""
        return self.kind if self.fitted is None else self.fitted.space.describe()

    def _due(self, bank: Known) -> bool:
        there = bank.version >= 0
        if self._follows or not there.any():
            return False
        at = -1 if self.fitted is None else self.fitted.step
        return refit_due(bank.step, at, self.refit_steps, float((bank.version[there] > at).mean()))

    def _fit(self, bank: Known) -> None:
        former, step = self.fitted, bank.step
        slots = np.flatnonzero(bank.version >= 0)
        if len(slots) > FIT_ROWS:  # drawn here, so that no copy of the whole bank is made
            slots = np.sort(np.random.default_rng((self.seed, step + 1)).choice(slots, FIT_ROWS, replace=False))
        parts = np.array_split(slots, -(-len(slots) // _ROWS_AT_ONCE))  # the bank's lock is held for one at a time
        rows = {view: np.concatenate([bank.vectors(part, view) for part in parts]) for view in bank.views}
        space = fit_space(self.kind, rows, seed=self.seed)
        self.fitted, self.fits = Fitted(space, step), self.fits + 1
        self._tables, self._stamps = {}, None  # the former tables live as long as a miner reads them
        if former is None or former.space.kind != space.kind:
            self._news = f"mining space from step {step}: {space.describe()}"
            _log.info("%s", self._news)

    def _map(self, bank: Kept, space: Space) -> NDArray[np.bool_]:
        if self._stamps is None:
            self._tables, self._joined = self._empty(bank, space.columns)
            self._stamps = np.zeros(bank.n_slots, np.int64)
        there = bank.version >= 0
        now = bank.stamps.copy()  # before the rows: what is written meanwhile has a higher number next time
        stale = np.flatnonzero((self._stamps != now) & there)
        for start in range(0, len(stale), _ROWS_AT_ONCE):
            slots = stale[start : start + _ROWS_AT_ONCE]
            for view, kept in self._tables.items():
                kept[slots] = stored(space.apply(view, bank.vectors(slots, view)), bank.dtype)
            self._stamps[slots] = now[slots]
        return there & (self._stamps > 0)  # a slot that is being filled at this moment has no image yet

    def _empty(self, bank: Kept, columns: int | None) -> tuple[dict[str, NDArray], NDArray | None]:
        kept = next(iter(bank.views.values()))
        wide = kept.shape[1] if columns is None else columns
        if not self._joins:
            return {view: np.zeros((bank.n_slots, wide), kept.dtype) for view in bank.views}, None
        joined = np.zeros((bank.n_slots, wide * len(bank.views)), kept.dtype)
        return {view: joined[:, place * wide :][:, :wide] for place, view in enumerate(bank.views)}, joined
